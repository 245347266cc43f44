/**
 * Commands that run around a freeze, so that what uses the volume can be brought to rest for the instant: a
 * filesystem on a client is frozen, a database asked to write out.
 *
 *     pre-hook  ->  freeze (the gate closes and reopens)  ->  post-hook
 *
 * The process that owns the volume runs them: it goes on when the command that asked has died. Nothing of a
 * volume is held while a hook runs, since what the client writes out then comes in as its writes and flushes.
 * Only the freeze itself is between the two, never the copying, which goes on beside the post-hook.
 *
 * A pre-hook that fails in any way means no freeze. Once it was started the post-hook runs, whatever became of
 * the pre-hook, the freeze or the request: a pre-hook that failed half-way may have frozen something. The
 * post-hook is held to the time limit alone. Where it fails after a good freeze the point is good, and a client
 * may stand still: that is told at once, on every way there is, and is no error of the freeze.
 *
 * What this cannot do: run the post-hook when this process itself is killed. A hook that must not depend on
 * that has a timer of its own, as `docs/examples/fsfreeze-hook` does.
 */

import { type Clock, LIMITS, randomId } from '../base/index.ts';
import { DaemonError } from './errors.ts';
import { hasSucceeded, type HookEnd, runHookProcess } from './hook-process.ts';

export interface FreezeHooks {
  /** Commands for `/bin/sh -c`. */
  readonly pre?: string;
  readonly post?: string;
  /** For each of the two. */
  readonly timeoutMs: number;
}

export interface FreezeContext {
  /** Names of the volumes that freeze together. */
  readonly volumes: readonly string[];
  /** The snapshot that the freeze makes, where it makes one. */
  readonly snapshot?: string;
  /** The store of the backup that the freeze begins, where it does. */
  readonly store?: string;
  readonly clock: Clock;
  /** Ends a pre-hook before its time and keeps the freeze from being made. The post-hook does not heed it. */
  readonly signal?: AbortSignal;
  /** Is told, at once, that a post-hook failed; a sentence. */
  readonly warn: (sentence: string) => void;
  /** Between SIGTERM and SIGKILL of a hook that takes too long. */
  readonly graceMs?: number;
}

/** With an id that the two hooks of one freeze have in common, and no others. */
interface IdentifiedContext extends FreezeContext {
  readonly freezeId: string;
}

export interface FreezeHookReport {
  /** From the start of the pre-hook to the end of the post-hook: a client was frozen for no longer. */
  readonly hookMs: number;
  /** How the post-hook failed. What the pre-hook has frozen may still be. */
  readonly hookWarning?: string;
}

export interface HookedFreeze<T> {
  readonly value: T;
  /** Undefined where there are no hooks. */
  readonly report: FreezeHookReport | undefined;
}

/**
 * Freezes with hooks around it; without hooks, just freezes.
 *
 * @param freeze makes the point and finishes as soon as writes go on.
 * @throws {DaemonError} hook-failed when the pre-hook did not end with status 0 in time; the signal's reason
 *   when it fired before the freeze; what `freeze` throws. The post-hook has run by then.
 */
export async function withFreezeHooks<T>(
  hooks: FreezeHooks | undefined,
  context: FreezeContext,
  freeze: () => Promise<T>,
): Promise<HookedFreeze<T>> {
  const { clock, signal } = context;
  signal?.throwIfAborted();
  if (hooks === undefined) return { value: await freeze(), report: undefined };
  const identified = { ...context, freezeId: randomId() };
  const startedMs = clock.monotonicMs();
  let frozen: { readonly value: T } | { readonly error: unknown };
  try {
    await runPreHook(hooks, identified);
    signal?.throwIfAborted();
    frozen = { value: await freeze() };
  } catch (error) {
    frozen = { error };
  }
  const hookWarning = await runPostHook(hooks, identified, 'value' in frozen);
  const hookMs = clock.monotonicMs() - startedMs;
  if ('error' in frozen) throw frozen.error;
  return { value: frozen.value, report: { hookMs, ...(hookWarning === undefined ? {} : { hookWarning }) } };
}

async function runPreHook({ pre, timeoutMs }: FreezeHooks, context: IdentifiedContext): Promise<void> {
  if (pre === undefined) return;
  const end = await runHook('pre', pre, timeoutMs, context);
  if (end.cause === 'aborted') context.signal?.throwIfAborted();
  if (hasSucceeded(end)) return;
  const { cause, status, signal, stderr } = end;
  throw new DaemonError('hook-failed', describeFailure('pre', pre, timeoutMs, end, context), {
    hook: 'pre',
    command: pre,
    cause,
    status,
    signal,
    stderr,
  });
}

/** @returns what went wrong, after it was told. */
async function runPostHook(
  { post, timeoutMs }: FreezeHooks,
  context: IdentifiedContext,
  isFrozen: boolean,
): Promise<string | undefined> {
  if (post === undefined) return undefined;
  const { signal: _, ...rest } = context;
  const end = await runHook('post', post, timeoutMs, rest, isFrozen ? 'done' : 'failed');
  if (hasSucceeded(end)) return undefined;
  const failure = describeFailure('post', post, timeoutMs, end, context);
  const warning = `${failure}; what the pre-freeze hook froze may still be frozen`;
  context.warn(warning);
  return warning;
}

function runHook(
  hook: 'pre' | 'post',
  command: string,
  timeoutMs: number,
  context: IdentifiedContext,
  result?: 'done' | 'failed',
): Promise<HookEnd> {
  const { freezeId, volumes, snapshot, store, signal } = context;
  const environment = {
    COWBELL_HOOK: hook,
    COWBELL_FREEZE: freezeId,
    COWBELL_VOLUMES: volumes.join(' '),
    // Taken out where unknown: what this process inherited under these names is about something else.
    COWBELL_SNAPSHOT: snapshot,
    COWBELL_STORE: store,
    COWBELL_RESULT: result,
  };
  const graceMs = context.graceMs ?? LIMITS.hookGraceMs;
  return runHookProcess({ command, environment, timeoutMs, graceMs, signal });
}

/** `Pre-freeze hook 'x' of vol failed with exit status 3: the last line it said`. */
function describeFailure(
  hook: 'pre' | 'post',
  command: string,
  timeoutMs: number,
  end: HookEnd,
  { volumes }: FreezeContext,
): string {
  const last = printable(end.stderr.trim().split('\n').at(-1) ?? '');
  const who = `${hook === 'pre' ? 'Pre' : 'Post'}-freeze hook '${printable(command)}' of ${volumes.join(', ')}`;
  return `${who} ${howItEnded(end, timeoutMs)}${last === '' ? '' : `: ${last}`}`;
}

function howItEnded({ cause, status, signal }: HookEnd, timeoutMs: number): string {
  if (cause === 'not-started') return 'could not be started';
  if (cause === 'time-limit') return `was ended after its time limit of ${timeoutMs} ms`;
  return signal === null ? `failed with exit status ${status}` : `was ended by signal ${signal}`;
}

/** What others wrote, fit for one line on a terminal. */
function printable(text: string): string {
  const line = text.replace(/\p{Cc}+/gu, ' ').trim();
  return line.length > 200 ? `${line.slice(0, 197)}...` : line;
}
