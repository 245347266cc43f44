/**
 * Removes from a store what a policy does not keep: `cowbell store prune`, in a process of its own, since the serving
 * process never opens a store (DESIGN section 2). The command itself is started, rather than a program of its own:
 * what it does by itself and what it does when somebody types it are then one thing. A passphrase is never among its
 * words, only the file that has it.
 */

import { type ChildProcess, fork } from 'node:child_process';
import { constants, setPriority } from 'node:os';
import { LIMITS } from '../base/index.ts';
import type { RetentionPolicy } from '../blockset/index.ts';
import { RemoteError } from './errors.ts';
import { LineSplitter } from './lines.ts';
import type { KeyPlace } from './policy-config.ts';
import { recordOf } from './untyped.ts';

export interface PruneRequest {
  /** Absolute. */
  readonly store: string;
  readonly key?: KeyPlace | undefined;
  /** The id of the volume whose sets are looked at. */
  readonly volume: string;
  readonly retention: RetentionPolicy;
  /** Ends it in good order. */
  readonly signal: AbortSignal;
}

export interface PruneReport {
  /** Sets. */
  readonly removed: number;
  readonly bytesFreed: number;
}

/** What is said before the end may list every set of a store. */
const LINE_BYTES_MAX = 64 * LIMITS.controlLineBytesMax;
/** Of what is written to standard error, the end. */
const STDERR_LENGTH_MAX = 2_000;

/**
 * Prunes a store.
 *
 * @param program the command line's.
 * @throws {RemoteError} with the code and the sentence of the command where it failed.
 */
export async function pruneStore(program: string, request: PruneRequest): Promise<PruneReport> {
  request.signal.throwIfAborted();
  const child = fork(program, wordsOf(request), { stdio: ['ignore', 'pipe', 'pipe', 'ipc'] });
  const end = (): void => void child.kill('SIGTERM');
  request.signal.addEventListener('abort', end);
  try {
    return await reportOf(child);
  } finally {
    request.signal.removeEventListener('abort', end);
  }
}

function wordsOf({ store, key, volume, retention }: PruneRequest): readonly string[] {
  const rules = Object.entries(retention).flatMap(([rule, count]) => {
    const option = rule.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    return count === undefined ? [] : [`--${option}=${count}`];
  });
  const keys =
    key === undefined
      ? []
      : ['keyFile' in key ? `--key-file=${key.keyFile}` : `--passphrase-file=${key.passphraseFile}`];
  return ['store', 'prune', store, '--json', ...rules, `--volume=${volume}`, ...keys];
}

function reportOf(child: ChildProcess): Promise<PruneReport> {
  const lines = new LineSplitter(LINE_BYTES_MAX);
  const report = { removed: 0, bytesFreed: 0 };
  let failure: { readonly code: string; readonly message: string } | undefined;
  let isDone = false;
  let stderr = '';
  const take = (line: string): void => {
    const { event, removed, bytesFreed, code, message } = parsed(line);
    if (event === 'pruned' && Array.isArray(removed)) {
      Object.assign(report, { removed: removed.length, bytesFreed: Number(bytesFreed) });
    } else if (event === 'error') failure = { code: String(code), message: String(message) };
    else if (event === 'done') isDone = true;
  };
  child.stdout?.on('data', (chunk: Buffer) => {
    const { lines: whole, overflow } = lines.push(chunk);
    whole.forEach(take);
    if (overflow) child.kill('SIGKILL');
  });
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr = `${stderr}${text}`.slice(-STDERR_LENGTH_MAX);
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('spawn', () => lowerPriority(child.pid));
    child.once('close', (status, signal) => {
      if (isDone && status === 0) return resolve(report);
      const { code = 'internal', message = stderr.trim() || 'it said nothing' } = failure ?? {};
      const how = signal === null ? `exit status ${status}` : `signal ${signal}`;
      reject(
        new RemoteError(code, failure === undefined ? `store prune ended with ${how}: ${message}` : message),
      );
    });
  });
}

/** Clients come first. Only a wish: the child may have ended already. */
function lowerPriority(pid: number | undefined): void {
  try {
    if (pid !== undefined) setPriority(pid, constants.priority.PRIORITY_BELOW_NORMAL);
  } catch {
    // It runs as everything else does.
  }
}

function parsed(line: string): Readonly<Record<string, unknown>> {
  try {
    return recordOf(JSON.parse(line));
  } catch {
    return {};
  }
}
