/** `cowbell detach`: takes a kernel device off its export; the process that watched it ends. */

import { detachKernelDevice } from '../../nbd/index.ts';
import type { AddCommand, CommandContext } from '../command.ts';
import { UsageError } from '../exit.ts';

interface Options {
  readonly json: boolean;
  readonly debug: boolean;
  readonly device: string;
  readonly force: boolean;
}

export const addDetach: AddCommand = (parser, run) =>
  parser.command(
    'detach <device>',
    'Detach a kernel device; unmount it first',
    (command) =>
      command
        .positional('device', { type: 'string', demandOption: true, describe: 'Such as /dev/nbd0' })
        .option('force', {
          type: 'boolean',
          default: false,
          describe: 'Also where it is mounted: everything on it fails from then on',
        })
        .example('$0 detach /dev/nbd0', ''),
    (options) => run<Options>(options, detach),
  );

async function detach(context: CommandContext, options: Options): Promise<void> {
  const { device, force } = options;
  if (!device.startsWith('/dev/')) {
    throw new UsageError(`The device is '${device}', wanted a path such as /dev/nbd0`);
  }
  await detachKernelDevice(device, { force });
  context.output.report({ event: 'detach', device }, `Detached ${device}`);
}
