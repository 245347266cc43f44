/** `cowbell attach`: a volume as a kernel block device, by way of nbd-client. */

import { type NbdAddress, parseNbdUri } from '../../nbd/index.ts';
import { readVolumeIdentity } from '../../volume/index.ts';
import { absolutePath, isUri } from '../arguments.ts';
import { addressOfVolume, attachArguments, shellLine } from '../attach.ts';
import type { AddCommand, CommandContext } from '../command.ts';
import { UsageError } from '../exit.ts';
import { runNbdClient } from '../nbd-client.ts';

interface Options {
  readonly json: boolean;
  readonly debug: boolean;
  readonly volume: string;
  readonly device: string;
  readonly print: boolean;
}

export const addAttach: AddCommand = (parser, run) =>
  parser.command(
    'attach <volume> <device>',
    'Attach a served volume, or the export of a URI, to a kernel device',
    (command) =>
      command
        .positional('volume', {
          type: 'string',
          demandOption: true,
          describe: 'Directory of a volume, or nbd://host:port/name, or nbd+unix:///name?socket=path',
        })
        .positional('device', { type: 'string', demandOption: true, describe: 'Such as /dev/nbd0' })
        .option('print', {
          type: 'boolean',
          default: false,
          describe: 'Only print the nbd-client command, for another machine to run',
        })
        .example('$0 attach /srv/vol /dev/nbd0', 'Attach a volume of this machine')
        .example('$0 attach --print nbd://10.0.2.2:10809/vol /dev/nbd0', 'What a guest would run'),
    (options) => run<Options>(options, attach),
  );

async function attach(context: CommandContext, options: Options): Promise<void> {
  const { output } = context;
  if (!options.device.startsWith('/dev/')) {
    throw new UsageError(`The device is '${options.device}', wanted a path such as /dev/nbd0`);
  }
  const address = await findExport(context, options);
  const words = attachArguments(address, options.device);
  const event = { event: 'attach', program: 'nbd-client', arguments: words, device: options.device };
  if (options.print) {
    output.report(event, shellLine(['nbd-client', ...words]));
    return;
  }
  await runNbdClient(context, words, `attach ${options.volume} to ${options.device}`);
  output.report(event, `Attached ${options.volume} to ${options.device}`);
}

async function findExport(context: CommandContext, options: Options): Promise<NbdAddress> {
  if (isUri(options.volume)) return parseNbdUri(options.volume);
  const directory = absolutePath('The volume', options.volume, context.directory);
  // For another machine the directory may be one that only exists there.
  if (!options.print) await readVolumeIdentity(directory);
  return addressOfVolume(directory);
}
