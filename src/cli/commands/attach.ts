/** `cowbell attach`: a volume as a block device of the kernel, kept connected by a process that stays behind. */

import { formatSize, LIMITS } from '../../base/index.ts';
import { attachKernelDevice, type NbdAddress, parseNbdUri } from '../../nbd/index.ts';
import { readVolumeIdentity } from '../../volume/index.ts';
import { absolutePath, isUri } from '../arguments.ts';
import {
  addressOfVolume,
  attachArguments,
  describeDeviceEvent,
  shellLine,
  type SupervisorOptions,
} from '../attach.ts';
import type { AddCommand, CommandContext } from '../command.ts';
import { UsageError } from '../exit.ts';

interface Options {
  readonly json: boolean;
  readonly debug: boolean;
  readonly volume: string;
  readonly device: string;
  readonly print: boolean;
  readonly foreground: boolean;
  readonly connections: number;
  readonly timeout: number;
  readonly deadTimeout: number;
}

const SECONDS_MAX = 1_000_000;

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
        .option('connections', {
          type: 'number',
          default: 1,
          requiresArg: true,
          describe: 'Connections to the server',
        })
        .option('timeout', {
          type: 'number',
          default: 30,
          requiresArg: true,
          describe:
            'Seconds after which a request without an answer is sent again; what was in flight when a server was restarted waits as long',
        })
        .option('dead-timeout', {
          type: 'number',
          default: 3600,
          requiresArg: true,
          describe: 'Seconds that requests wait for a server that is away, before they fail',
        })
        .option('foreground', {
          type: 'boolean',
          default: false,
          describe:
            'Watch the device in this process, for a service manager; it ends when the device is detached, and SIGTERM leaves the device attached',
        })
        .option('print', {
          type: 'boolean',
          default: false,
          describe:
            'Only print the nbd-client command, for a machine without cowbell; nbd-client 3.24 (Debian 12) does not survive a restart of the server',
        })
        .example('$0 attach /srv/vol /dev/nbd0', 'Attach a volume of this machine')
        .example('$0 attach --print nbd://10.0.2.2:10809/vol /dev/nbd0', 'What a guest would run'),
    (options) => run<Options>(options, attach),
  );

async function attach(context: CommandContext, options: Options): Promise<void> {
  const { output } = context;
  const { device } = options;
  if (!device.startsWith('/dev/')) {
    throw new UsageError(`The device is '${device}', wanted a path such as /dev/nbd0`);
  }
  const wanted: Omit<SupervisorOptions, 'address'> = {
    device,
    connections: count('--connections', options.connections, LIMITS.kernelConnectionCountMax),
    timeoutSeconds: count('--timeout', options.timeout, SECONDS_MAX),
    deadConnectionSeconds: count('--dead-timeout', options.deadTimeout, SECONDS_MAX),
  };
  const address = await findExport(context, options);
  if (options.print) {
    const words = attachArguments(address, device, wanted.connections);
    const event = { event: 'attach', program: 'nbd-client', arguments: words, device };
    output.report(event, shellLine(['nbd-client', ...words]));
  } else if (options.foreground) {
    await watch(context, options.volume, { ...wanted, address });
  } else {
    const { sizeBytes, isTakenOver, pid } = await context.startSupervisor({ ...wanted, address });
    const verb = isTakenOver ? 'Watching again' : 'Attached';
    const line = `${verb} ${device}, ${formatSize(sizeBytes)} of ${options.volume}, by process ${pid}`;
    output.report({ event: 'attach', device, sizeBytes, takenOver: isTakenOver, pid }, line);
  }
}

async function watch(context: CommandContext, volume: string, options: SupervisorOptions): Promise<void> {
  const { output, signal } = context;
  const { device } = options;
  const attached = await attachKernelDevice({
    ...options,
    onEvent: (event) => output.report({ event: event.kind, device }, describeDeviceEvent(event)),
  });
  const { sizeBytes } = attached.exportInfo;
  const line = `${attached.isTakenOver ? 'Watching again' : 'Attached'} ${device}, ${formatSize(sizeBytes)} of ${volume}`;
  output.report({ event: 'attach', device, sizeBytes, takenOver: attached.isTakenOver }, line);
  const end = await attached.supervise(signal);
  if (end === 'left') output.report({ event: 'left', device }, `${device} stays attached, unwatched`);
  else output.report({ event: 'detached', device }, `${device} was detached`);
}

function count(option: string, value: number, max: number): number {
  if (Number.isInteger(value) && value >= 1 && value <= max) return value;
  throw new UsageError(`${option} is ${value}, wanted a whole number from 1 to ${max}`);
}

async function findExport(context: CommandContext, options: Options): Promise<NbdAddress> {
  if (isUri(options.volume)) return parseNbdUri(options.volume);
  const directory = absolutePath('The volume', options.volume, context.directory);
  // For another machine the directory may be one that only exists there.
  if (!options.print) await readVolumeIdentity(directory);
  return addressOfVolume(directory);
}
