/** The options of the intermediate container: its areas, and what is done when they are full. */

import type { Argv } from 'yargs';
import { LIMITS } from '../base/index.ts';
import { ON_FULL, type OnFull } from '../daemon/index.ts';
import { formatTimeMs, readTimeMs, single } from './arguments.ts';
import { UsageError } from './exit.ts';

export interface ContainerOptions {
  readonly container: readonly string[] | undefined;
  readonly onFull: OnFull;
  readonly maxWait: string | undefined;
}

const DEFAULT_ON_FULL: OnFull = 'wait';

export function addContainerOptions<T>(command: Argv<T>) {
  return command
    .option('container', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'memory:<size> or <path>:<size>: room for old content that clients overwrite meanwhile',
    })
    .option('on-full', {
      choices: ON_FULL,
      default: DEFAULT_ON_FULL,
      describe: 'What a write does that needs room when there is none: wait for it, or cancel the backup',
    })
    .option('max-wait', {
      type: 'string',
      requiresArg: true,
      describe: `With --on-full cancel, how long a write may wait first, such as 500ms, 30s or 2m; ${formatTimeMs(LIMITS.containerWaitMsDefault)} when left out`,
    });
}

/** Undefined where writes wait for as long as it takes. */
export function readMaxWait(options: ContainerOptions): number | undefined {
  const onFull = single('--on-full', options.onFull) ?? DEFAULT_ON_FULL;
  const time = single('--max-wait', options.maxWait);
  if (onFull === 'wait') {
    if (time === undefined) return undefined;
    throw new UsageError('--max-wait is given and writes wait, wanted --on-full cancel too');
  }
  const range = { min: LIMITS.containerWaitMsMin, max: LIMITS.containerWaitMsMax };
  return time === undefined ? LIMITS.containerWaitMsDefault : readTimeMs('--max-wait', time, range);
}
