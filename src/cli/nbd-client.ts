/** Runs nbd-client and turns its failure into an error of ours. */

import { BlockError, systemCode } from '../base/index.ts';
import type { CommandContext } from './command.ts';

export interface NbdClientErrorDetails {
  /** The program is not installed. */
  'no-nbd-client': Record<string, never>;
  /** The program said why on standard error. */
  'nbd-client-failed': { readonly status: number };
}

export class NbdClientError<
  Code extends keyof NbdClientErrorDetails = keyof NbdClientErrorDetails,
> extends BlockError<NbdClientErrorDetails, Code> {}

/**
 * @param purpose completes `Cannot ...`.
 * @throws {NbdClientError} no-nbd-client, nbd-client-failed
 */
export async function runNbdClient(
  context: CommandContext,
  words: readonly string[],
  purpose: string,
): Promise<void> {
  let status: number;
  try {
    status = await context.runProgram('nbd-client', words);
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error;
    const message = `Cannot ${purpose}: nbd-client is not installed; install the package nbd-client`;
    throw new NbdClientError('no-nbd-client', message, {}, { cause: error });
  }
  if (status === 0) return;
  const message = `Cannot ${purpose}: nbd-client ended with status ${status}; is the module nbd loaded, and are you root`;
  throw new NbdClientError('nbd-client-failed', message, { status });
}
