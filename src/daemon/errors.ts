/**
 * The operating errors of the room `daemon`, and how an error crosses the control socket.
 *
 * A class does not survive the socket; its code and message do. The client raises a `RemoteError` with the
 * code of the original, or a `CorruptionError` again where the server met damage, so that the command line
 * ends with the same exit status online and offline.
 */

import { BackupError } from '../backup/index.ts';
import { BlockError, CorruptionError, type CorruptionPlace, messageOf, systemCode } from '../base/index.ts';
import type { HookEnd } from './hook-process.ts';

export interface DaemonErrorDetails {
  /** Two served volumes have one base name; their exports could not be told apart. */
  'duplicate-name': { readonly name: string; readonly directories: readonly string[] };
  /** A listener is to serve an export that none of the served volumes is. */
  'unknown-export': { readonly name: string; readonly served: readonly string[] };
  /** A socket cannot be bound. */
  'cannot-listen': { readonly address: string };
  /** The volume already runs a session to the same store, or of a kind of which one is allowed. */
  'session-running': { readonly volume: string; readonly session: string; readonly kind: string };
  /** Several sessions run, and none of them was named. */
  'several-sessions': { readonly volume: string; readonly sessions: readonly string[] };
  'unknown-session': { readonly volume: string; readonly session: string | undefined };
  /** The session was cancelled, by Ctrl-C, by `cancel` or because the server stops. */
  cancelled: { readonly volume: string; readonly session: string };
  /** The server is stopping and starts nothing new. */
  stopping: { readonly volume: string };
  /** A line of the control protocol is not what FORMAT.md says. */
  'bad-request': { readonly reason: string };
  /** The connection of a control client ended before its answer. */
  'control-lost': { readonly path: string };
  /** An export that is to be withdrawn has clients. */
  'clients-connected': { readonly exportName: string; readonly count: number };
  /** Volumes that are to freeze together are served by several processes, or some by none. */
  'not-served-together': { readonly directories: readonly string[] };
  /** One volume is named twice in a group. */
  'named-twice': { readonly directory: string };
  /** The volume is being rolled back, or was in part: what it holds is of no one time. */
  'rolling-back': { readonly volume: string };
  /** Nobody serves the volume, and the command needs a server. */
  'not-served': { readonly directory: string };
  /** An area of the intermediate container cannot be used. */
  'bad-container': { readonly path: string };
  /** The pre-hook of a freeze failed, could not be started or took too long; nothing was frozen. */
  'hook-failed': {
    readonly hook: 'pre';
    readonly command: string;
    readonly cause: HookEnd['cause'];
    readonly status: number | null;
    readonly signal: string | null;
    /** The last of its error output. */
    readonly stderr: string;
  };
  /** More control connections, or more requests of one connection, than the limit. */
  'too-many': { readonly limit: number };
  /** A volume that is to be recovered has its home. */
  'not-lost': { readonly directory: string };
  /** The volume keeps no delta logs, or none that can be used. */
  'no-deltas': { readonly directory: string };
  /** Where the home of a rebuild goes has to be said, or is taken. */
  'no-home': { readonly directory: string };
  /** A volume cannot go on without its home, though it is to. */
  'cannot-survive': { readonly directory: string };
  /** Everything of the volume is in its home. */
  'not-recovering': { readonly directory: string };
  /** A recovery that has begun goes on from what it began with. */
  'other-recovery': { readonly directory: string };
  /** The same ranges were recovered before. */
  'recovered-already': { readonly directory: string };
  /** A range of a volume that cannot be recovered by itself. */
  'bad-range': Readonly<Record<string, never>>;
  /** The process that reads a set of a store has died: nothing can be read of the set any more. */
  'reader-died': {
    readonly store: string;
    readonly set: string;
    readonly exitCode: number | null;
    readonly signal: string | null;
  };
  /** What the other side of the control socket said is no reply of this protocol. */
  'bad-reply': { readonly reason: string };
}

export type DaemonErrorCode = keyof DaemonErrorDetails;

export class DaemonError<Code extends DaemonErrorCode = DaemonErrorCode> extends BlockError<
  DaemonErrorDetails,
  Code
> {}

/** An operating error that happened in the serving process; `code` is that of the original. */
export class RemoteError extends Error {
  override readonly name = 'RemoteError';
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

/** An error as it crosses the control socket. */
export interface WireError {
  readonly code: string;
  readonly message: string;
  /** There for damage only. */
  readonly corruption?: CorruptionPlace;
}

/** What any thrown thing looks like on the wire. */
export function toWireError(error: unknown): WireError {
  if (error instanceof CorruptionError) {
    return { code: 'corruption', message: error.message, corruption: error.place };
  }
  return { code: errorCode(error), message: messageOf(error) };
}

/** The error a client raises for what the server said. */
export function fromWireError(error: WireError): Error {
  if (error.corruption !== undefined) return new CorruptionError(error.message, error.corruption);
  return new RemoteError(error.code, error.message);
}

/**
 * The code of anything that was thrown: its own, the errno name of a system error, or `internal`. What failed in
 * a session's child keeps the code it had there.
 */
export function errorCode(error: unknown): string {
  if (error instanceof CorruptionError) return 'corruption';
  if (error instanceof BackupError && 'workerCode' in error.details) {
    return error.details.workerCode ?? error.code;
  }
  return systemCode(error) ?? 'internal';
}
