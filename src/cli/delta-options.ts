/** `--delta` and `--at`: what delta logs tell since a set, up to an instant where one is named. */

import type { Argv } from 'yargs';
import type { LogsWish } from '../daemon/index.ts';
import { absolutePlace, several, single } from './arguments.ts';
import { UsageError } from './exit.ts';
import { readInstant } from './time-arguments.ts';

export interface DeltaOptions {
  readonly delta: string | readonly (string | number)[] | undefined;
  readonly at: string | undefined;
}

/** @param what of which the logs are: for the help. */
export function addDeltaOptions<T>(command: Argv<T>, what: string) {
  return command
    .option('delta', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe: `Place with delta logs of ${what}, which are laid over the set; may be given several times, once for each copy`,
    })
    .option('at', {
      type: 'string',
      requiresArg: true,
      describe:
        'With --delta: as it was after the last write before this time, such as 2030-01-31T18:00:00, in UTC; latest is the newest set before it then',
    });
}

/** The logs that are asked for; undefined where none are. @throws {UsageError} */
export function logsOf({ delta, at }: DeltaOptions, directory: string): LogsWish | undefined {
  const places = several(delta).map((place) => absolutePlace(place, directory));
  const text = single('--at', at);
  const beforeMs = text === undefined ? undefined : readInstant('--at', text);
  if (places.length === 0) {
    if (beforeMs === undefined) return undefined;
    throw new UsageError('--at is given without --delta, wanted the places of the delta logs too');
  }
  return { places, ...(beforeMs === undefined ? {} : { beforeMs }) };
}
