/** What a command gets and returns, and how yargs is given one. */

import type { Argv } from 'yargs';
import type { Clock } from '../base/index.ts';
import type { FurtherListener } from '../daemon/index.ts';
import type { Output } from './output.ts';
import type { StartSupervisor } from './supervisor.ts';

export interface CommandContext {
  readonly output: Output;
  /** Paths that people type are relative to this directory; what goes online is absolute. */
  readonly directory: string;
  /** Fires at Ctrl-C and at SIGTERM. */
  readonly signal: AbortSignal;
  readonly clock: Clock;
  /** What COWBELL_PASSPHRASE says; it is not passed on to processes that are started. */
  readonly passphrase?: string | undefined;
  /** Asks for a line that is not shown while it is typed; absent where there is no terminal. */
  readonly askSecret?: ((question: string) => Promise<string>) | undefined;
  /** Attaches a kernel device from a process that stays behind. */
  readonly startSupervisor: StartSupervisor;
  /** Calls back at each SIGHUP, until what it returned is called; without anybody who listens it ends the process. */
  readonly onHangup: (listen: () => void) => () => void;
  /** Sockets that were handed to this process; they are the caller's from then on. */
  readonly takeHandedSockets: () => readonly FurtherListener[];
}

/** Options of every command. */
export interface GlobalOptions {
  readonly json: boolean;
  readonly debug: boolean;
}

/** Runs the body of a command with its context, and prints `done` when it has succeeded. */
export type Run = <A extends GlobalOptions>(
  options: A,
  body: (context: CommandContext, options: A) => Promise<void>,
) => Promise<void>;

/** Adds one command to the parser. */
export type AddCommand = (parser: Argv<GlobalOptions>, run: Run) => Argv<GlobalOptions>;
