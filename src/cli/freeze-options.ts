/** The options of every command that freezes volumes: what runs around the freeze, and for how long. */

import type { Argv } from 'yargs';
import { LIMITS } from '../base/index.ts';
import type { FreezeHooks } from '../daemon/index.ts';
import { formatTimeMs, readTimeMs, single } from './arguments.ts';
import { UsageError } from './exit.ts';

export interface FreezeOptions {
  readonly preFreeze: string | undefined;
  readonly postFreeze: string | undefined;
  readonly hookTimeout: string | undefined;
}

/** Adds the options to a command. */
export function addFreezeOptions<T>(command: Argv<T>) {
  return command
    .option('pre-freeze', {
      type: 'string',
      requiresArg: true,
      describe: 'Shell command run before the freeze; if it fails, nothing is frozen',
    })
    .option('post-freeze', {
      type: 'string',
      requiresArg: true,
      describe: 'Shell command run right after the freeze, and whenever the one before it was started',
    })
    .option('hook-timeout', {
      type: 'string',
      requiresArg: true,
      describe: `Time limit of each of the two, such as 500ms, 30s or 2m; ${formatTimeMs(LIMITS.hookTimeoutMsDefault)} when left out`,
    });
}

/**
 * Reads what was typed; undefined where no hooks are asked for.
 *
 * @throws {UsageError} for an option without a value or given twice, a time out of range, or one without hooks.
 */
export function readFreezeHooks(options: FreezeOptions): FreezeHooks | undefined {
  const pre = readCommand('--pre-freeze', options.preFreeze);
  const post = readCommand('--post-freeze', options.postFreeze);
  const time = single('--hook-timeout', options.hookTimeout);
  if (pre === undefined && post === undefined) {
    if (time === undefined) return undefined;
    throw new UsageError('--hook-timeout is given without a hook, wanted --pre-freeze or --post-freeze too');
  }
  const range = { min: LIMITS.hookTimeoutMsMin, max: LIMITS.hookTimeoutMsMax };
  return {
    ...(pre === undefined ? {} : { pre }),
    ...(post === undefined ? {} : { post }),
    timeoutMs: time === undefined ? LIMITS.hookTimeoutMsDefault : readTimeMs('--hook-timeout', time, range),
  };
}

function readCommand(option: string, value: string | undefined): string | undefined {
  const command = single(option, value);
  if (command === undefined) return undefined;
  if (command.trim() === '') throw new UsageError(`${option} is empty, wanted a shell command`);
  const lengthBytes = Buffer.byteLength(command);
  if (lengthBytes <= LIMITS.hookCommandBytesMax) return command;
  throw new UsageError(
    `${option} has ${lengthBytes} bytes, wanted at most ${LIMITS.hookCommandBytesMax}; put it into a script`,
  );
}
