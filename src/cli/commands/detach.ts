/** `cowbell detach`: takes a kernel device off its export. */

import { detachArguments } from '../attach.ts';
import type { AddCommand, CommandContext } from '../command.ts';
import { UsageError } from '../exit.ts';
import { runNbdClient } from '../nbd-client.ts';

interface Options {
  readonly json: boolean;
  readonly debug: boolean;
  readonly device: string;
}

export const addDetach: AddCommand = (parser, run) =>
  parser.command(
    'detach <device>',
    'Detach a kernel device; unmount it first',
    (command) =>
      command
        .positional('device', { type: 'string', demandOption: true, describe: 'Such as /dev/nbd0' })
        .example('$0 detach /dev/nbd0', ''),
    (options) => run<Options>(options, detach),
  );

async function detach(context: CommandContext, options: Options): Promise<void> {
  if (!options.device.startsWith('/dev/')) {
    throw new UsageError(`The device is '${options.device}', wanted a path such as /dev/nbd0`);
  }
  await runNbdClient(context, detachArguments(options.device), `detach ${options.device}`);
  context.output.report({ event: 'detach', device: options.device }, `Detached ${options.device}`);
}
