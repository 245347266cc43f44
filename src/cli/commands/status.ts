/** `cowbell status`: what a volume does, asked of its server or read from the volume itself. */

import { reachVolume } from '../../daemon/index.ts';
import { absolutePath } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { describe } from '../output.ts';
import { storeReaderPath } from '../worker-path.ts';

interface Options extends GlobalOptions {
  readonly volume: string;
}

export const addStatus: AddCommand = (parser, run) =>
  parser.command(
    'status <volume>',
    'Show the state, the sessions and the counters of a volume, served or not',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .example('$0 status /srv/vol', '')
        .example('$0 --json status /srv/vol', 'For a program'),
    (options) => run<Options>(options, status),
  );

async function status(context: CommandContext, options: Options): Promise<void> {
  const directory = absolutePath('The volume', options.volume, context.directory);
  const access = await reachVolume(directory, {
    activity: 'status',
    readOnly: true,
    clock: context.clock,
    readerPath: storeReaderPath(),
  });
  try {
    const result = { served: access.online, ...(await access.status()) };
    context.output.report({ event: 'status', ...result }, ...describe(result));
  } finally {
    await access.close();
  }
}
