/**
 * A shell command under a time limit, with everything that it starts.
 *
 * It gets a session and process group of its own: a Ctrl-C at the terminal does not reach it, and what it
 * starts can be ended with it. At the limit, or when it is aborted, the group gets SIGTERM and, after a grace,
 * SIGKILL; it is over when the group is empty, not when the shell is, so that nothing of it acts later. A
 * process that even SIGKILL does not end (one that waits for a dead disk) is left behind: every wait here is
 * bounded.
 *
 * A command that ends by itself may leave processes behind; they are none of our business. Its error output
 * is read until then, and only its end is kept.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { env, kill } from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { LIMITS, messageOf } from '../base/index.ts';

export interface HookProcessOptions {
  /** For `/bin/sh -c`, run where this process runs. */
  readonly command: string;
  /** Added to the environment of this process, or taken out of it where undefined. */
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly timeoutMs: number;
  /** Between SIGTERM and SIGKILL. */
  readonly graceMs: number;
  /** Ends the command before its time. */
  readonly signal?: AbortSignal | undefined;
}

/** How the command ended, and the last of its error output. */
export interface HookEnd {
  readonly cause: 'exit' | 'time-limit' | 'aborted' | 'not-started';
  /** Exit status of the shell; null where a signal ended it, or it did not end at all. */
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stderr: string;
}

/** Whether the command ended by itself and well: one that is ended at its limit may say so too. */
export function hasSucceeded({ cause, status }: HookEnd): boolean {
  return cause === 'exit' && status === 0;
}

/** How the command ended, in a few words for a sentence. */
export function describeEnd({ cause, status, signal }: HookEnd): string {
  return cause === 'exit' ? `exit status ${status ?? signal}` : cause;
}

/** How often a group that is to end is looked at: nobody tells when the last of its processes is gone. */
const LOOK_MS = 10;
/** How long what a failed command said may take to arrive after its end: a process it left may hold the pipe. */
const STDERR_MS_MAX = 100;

/** Runs the command to its end. Never rejects: what went wrong is in the answer. */
export async function runHookProcess(options: HookProcessOptions): Promise<HookEnd> {
  let child: ChildProcess;
  try {
    child = spawn('/bin/sh', ['-c', options.command], {
      detached: true,
      env: { ...env, ...options.environment },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
  } catch (error) {
    return { cause: 'not-started', status: null, signal: null, stderr: messageOf(error) };
  }
  return new HookProcess(child, options).end();
}

class HookProcess {
  readonly #child: ChildProcess;
  readonly #options: HookProcessOptions;
  readonly #exited: Promise<void>;
  readonly #closed: Promise<void>;
  #startFailure: Error | undefined;
  #stderr = '';

  constructor(child: ChildProcess, options: HookProcessOptions) {
    this.#child = child;
    this.#options = options;
    this.#exited = new Promise((resolve) => {
      child.once('exit', () => resolve());
      child.on('error', (error) => {
        // Node also reports here what happens to a process that runs; only this one was never there.
        if (child.pid === undefined) this.#startFailure = error;
        resolve();
      });
    });
    this.#closed = new Promise((resolve) => child.once('close', () => resolve()));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-LIMITS.hookErrorBytesMax);
    });
  }

  async end(): Promise<HookEnd> {
    const cause = await this.#firstCause();
    const { pid } = this.#child;
    if (cause !== 'exit' && pid !== undefined) await endGroup(pid, this.#options.graceMs);
    const { exitCode: status, signalCode: signal } = this.#child;
    if (status !== 0) await Promise.race([this.#closed, sleep(STDERR_MS_MAX)]);
    this.#child.stderr?.destroy();
    this.#child.unref();
    if (this.#startFailure !== undefined)
      return { cause: 'not-started', status, signal, stderr: this.#startFailure.message };
    return { cause, status, signal, stderr: this.#stderr };
  }

  async #firstCause(): Promise<'exit' | 'time-limit' | 'aborted'> {
    const { timeoutMs, signal } = this.#options;
    let timer: NodeJS.Timeout | undefined;
    let onAbort: (() => void) | undefined;
    try {
      return await Promise.race([
        this.#exited.then(() => 'exit' as const),
        new Promise<'time-limit'>((resolve) => {
          timer = setTimeout(() => resolve('time-limit'), timeoutMs);
        }),
        new Promise<'aborted'>((resolve) => {
          onAbort = () => resolve('aborted');
          if (signal?.aborted === true) onAbort();
          else signal?.addEventListener('abort', onAbort);
        }),
      ]);
    } finally {
      clearTimeout(timer);
      if (onAbort !== undefined) signal?.removeEventListener('abort', onAbort);
    }
  }
}

/**
 * Ends all processes of a group; returns when it is empty, or when SIGKILL has had its time. Dead processes that
 * nobody has buried yet count as there, since telling them apart means looking at every process of the machine.
 */
async function endGroup(group: number, graceMs: number): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    signalGroup(group, signal);
    const deadlineMs = performance.now() + graceMs;
    while (performance.now() < deadlineMs) {
      if (!signalGroup(group, 0)) return;
      await sleep(LOOK_MS);
    }
  }
}

/** @returns whether the group has processes. Signal 0 only looks. */
function signalGroup(group: number, signal: NodeJS.Signals | 0): boolean {
  try {
    return kill(-group, signal);
  } catch {
    return false;
  }
}
