/** `cowbell cancel`: ends a running session of a served volume. */

import { cancelSession } from '../../daemon/index.ts';
import { absolutePath } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';

interface Options extends GlobalOptions {
  readonly volume: string;
  readonly session: string | undefined;
}

export const addCancel: AddCommand = (parser, run) =>
  parser.command(
    'cancel <volume> [session]',
    'Cancel the session that runs on a served volume, and wait until it has ended',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .positional('session', { type: 'string', describe: 'Id of the session, as status shows it' })
        .example('$0 cancel /srv/vol', ''),
    (options) => run<Options>(options, cancel),
  );

async function cancel(context: CommandContext, options: Options): Promise<void> {
  const directory = absolutePath('The volume', options.volume, context.directory);
  const { session } = await cancelSession(directory, options.session);
  context.output.report(
    { event: 'cancelled', volume: directory, session },
    `Cancelled session ${session} of ${directory}`,
  );
}
