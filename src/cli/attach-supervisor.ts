/**
 * The program that stays behind `cowbell attach`: attaches a kernel device, tells its parent, and keeps the device
 * connected until it is detached or until SIGTERM, which leaves the device as it is.
 *
 * It has no terminal; what it sees goes to the kernel's log, beside the driver's own lines about the device.
 */

import { appendFileSync } from 'node:fs';
import { BlockError, messageOf, systemCode } from '../base/index.ts';
import { attachKernelDevice, type KernelDeviceEvent } from '../nbd/index.ts';
import { describeDeviceEvent, type SupervisorMessage, type SupervisorOptions } from './attach.ts';

// Imports little: it is there as long as the device is.

/** The kernel's log levels. */
const WARNING = 4;
const NOTICE = 5;

const ending = new AbortController();
process.on('SIGTERM', () => ending.abort());
process.on('SIGINT', () => ending.abort());
process.on('SIGHUP', () => undefined);
// A directory in use cannot be unmounted.
process.chdir('/');

function note(level: number, text: string): void {
  try {
    appendFileSync('/dev/kmsg', `<${level}>cowbell: ${text}\n`);
  } catch {
    // A container without the kernel's log: the device works all the same.
  }
}

/** The parent ends after the one message it waits for. */
function tell(message: SupervisorMessage): Promise<void> {
  return new Promise((resolve) => {
    if (process.send === undefined || !process.connected) resolve();
    else {
      process.send(message, undefined, {}, () => {
        process.disconnect();
        resolve();
      });
    }
  });
}

async function run(options: SupervisorOptions): Promise<void> {
  const onEvent = (event: KernelDeviceEvent): void => {
    note(event.kind === 'restored' ? NOTICE : WARNING, describeDeviceEvent(event));
  };
  const device = await attachKernelDevice({ ...options, onEvent });
  const { sizeBytes } = device.exportInfo;
  await tell({ kind: 'attached', sizeBytes, isTakenOver: device.isTakenOver });
  const end = await device.supervise(ending.signal);
  note(NOTICE, `${options.device} is ${end === 'detached' ? 'detached' : 'no longer watched'}`);
}

try {
  // The parent is this package's own command.
  const options: SupervisorOptions = JSON.parse(process.argv[2] ?? '');
  await run(options);
} catch (error) {
  note(WARNING, messageOf(error));
  const code = error instanceof BlockError ? error.code : (systemCode(error) ?? 'internal');
  await tell({ kind: 'failed', code, message: messageOf(error) });
  process.exitCode = 1;
}
