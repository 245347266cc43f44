/** The options of how a set is written: codec, lanes and rate. */

import type { Argv } from 'yargs';
import type { WriteStyle } from '../backup/index.ts';
import { absolutePath, readCodec, readSize, several, single } from './arguments.ts';
import { UsageError } from './exit.ts';

export interface StyleOptions {
  readonly codec: string;
  readonly lane: readonly string[] | undefined;
  readonly rate: string | undefined;
}

const DEFAULT_CODEC = 'zstd';

export function addStyleOptions<T>(command: Argv<T>) {
  return command
    .option('codec', {
      type: 'string',
      requiresArg: true,
      default: DEFAULT_CODEC,
      describe: 'How content is compressed: zstd, zstd:<level> (-7 fast to 19 small), fast, or none',
    })
    .option('lane', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'Directory of another disk: the set is written to it and the store at the same time',
    })
    .option('rate', {
      type: 'string',
      requiresArg: true,
      describe: 'Bytes a second that are read at the most, such as 100M; clients never wait for it',
    });
}

/** @throws {UsageError} */
export function readStyle(options: StyleOptions, directory: string): WriteStyle {
  const lanes = several(options.lane).map((lane) => absolutePath('--lane', lane, directory));
  const twice = lanes.find((lane, index) => lanes.indexOf(lane) !== index);
  if (twice !== undefined) throw new UsageError(`Lane ${twice} is named twice, wanted once`);
  const rate = single('--rate', options.rate);
  return {
    ...readCodec(single('--codec', options.codec) ?? DEFAULT_CODEC),
    ...(lanes.length === 0 ? {} : { lanes }),
    ...(rate === undefined ? {} : { rateBytesPerSecond: Math.max(1, readSize('--rate', rate)) }),
  };
}
