/** `cowbell volume history`: when a volume was written and flushed, from its delta logs. */

import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import { createDeviceRegistry, type HistoryEvent, readHistory } from '../../daemon/index.ts';
import { absolutePath, absolutePlace, several, single } from '../arguments.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { readInstant } from '../time-arguments.ts';

interface Options extends GlobalOptions {
  readonly volume: string;
  readonly from: string | undefined;
  readonly to: string | undefined;
  readonly delta: string | readonly (string | number)[] | undefined;
}

export function addHistory(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'history <volume>',
    'List when a volume was written, flushed and backed up, as far back as its delta logs reach; served or not',
    (command) =>
      command
        .positional('volume', {
          type: 'string',
          demandOption: true,
          describe: 'Directory of the volume; with --delta it need not be there',
        })
        .option('from', { type: 'string', requiresArg: true, describe: 'From this time on, in UTC' })
        .option('to', { type: 'string', requiresArg: true, describe: 'Before this time, in UTC' })
        .option('delta', {
          type: 'string',
          array: true,
          requiresArg: true,
          describe: 'Place with its delta logs, in place of those that the volume names; may be given again',
        })
        .example('$0 volume history /srv/vol', '')
        .example('$0 volume history /srv/vol --from 2030-01-31T17:00 --to 2030-01-31T19:00', 'When was it?'),
    (options) => run<Options>(options, history),
  );
}

async function history(context: CommandContext, options: Options): Promise<void> {
  const { output, directory } = context;
  const [from, to] = [single('--from', options.from), single('--to', options.to)];
  const deltas = several(options.delta).map((place) => absolutePlace(place, directory));
  const events = readHistory({
    directory: absolutePath('The volume', options.volume, directory),
    ...(deltas.length === 0 ? {} : { deltas }),
    fromMs: from === undefined ? undefined : readInstant('--from', from),
    toMs: to === undefined ? undefined : readInstant('--to', to),
    registry: createDeviceRegistry(),
    warn: (sentence) => output.warn(sentence),
  });
  for await (const event of events) output.report({ event: event.kind, ...event }, lineOf(event));
}

function lineOf(event: HistoryEvent): string {
  const at = new Date(event.timeMs).toISOString();
  switch (event.kind) {
    case 'point':
      return `${at}  point ${event.point === '' ? 'of the beginning' : event.point}`;
    case 'flush':
      return event.count === 1
        ? `${at}  flush`
        : `${at}  ${event.count} flushes, the last at ${new Date(event.lastMs).toISOString()}`;
    case 'writes': {
      const { writes, bytes, tracks, lastMs } = event;
      const until = lastMs === event.timeMs ? '' : ` until ${new Date(lastMs).toISOString()}`;
      return `${at}  ${writes} ${writes === 1 ? 'write' : 'writes'} of ${formatSize(bytes)} to ${tracks} ${tracks === 1 ? 'track' : 'tracks'}${until}`;
    }
  }
}
