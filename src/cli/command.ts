/** What a command gets and returns, and how yargs is given one. */

import type { Argv } from 'yargs';
import type { Clock } from '../base/index.ts';
import type { Output } from './output.ts';

export interface CommandContext {
  readonly output: Output;
  /** Paths that people type are relative to this directory; what goes online is absolute. */
  readonly directory: string;
  /** Fires at Ctrl-C and at SIGTERM. */
  readonly signal: AbortSignal;
  readonly clock: Clock;
  /** Runs a program on this terminal and gives its exit status; for nbd-client. */
  readonly runProgram: (program: string, words: readonly string[]) => Promise<number>;
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
