/** Starts the program that stays behind `cowbell attach`, and waits until it has attached the device. */

import { fork } from 'node:child_process';
import { BlockError } from '../base/index.ts';
import { RemoteError } from '../daemon/index.ts';
import type { SupervisorMessage, SupervisorOptions } from './attach.ts';
import { supervisorPath } from './worker-path.ts';

export interface SupervisorErrorDetails {
  /** The program ended before it said anything. */
  'supervisor-ended': { readonly status: number | null };
}

export class SupervisorError extends BlockError<SupervisorErrorDetails, 'supervisor-ended'> {}

/** The device as its supervisor attached it. */
export interface AttachedDevice {
  readonly sizeBytes: number;
  readonly isTakenOver: boolean;
  /** The process that watches the device. */
  readonly pid: number;
}

export type StartSupervisor = (options: SupervisorOptions) => Promise<AttachedDevice>;

/**
 * The program goes on when this process ends: it has a session of its own, and no terminal.
 *
 * @throws {RemoteError} with the code of what kept it from attaching.
 * @throws {SupervisorError} supervisor-ended
 */
export const startSupervisor: StartSupervisor = (options) =>
  new Promise((resolve, reject) => {
    const child = fork(supervisorPath(), [JSON.stringify(options)], {
      detached: true,
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    });
    const settle = (then: () => void): void => {
      child.removeAllListeners();
      if (child.connected) child.disconnect();
      child.unref();
      then();
    };
    child.once('message', (message) => {
      const said = messageFrom(message);
      settle(() => {
        if (said?.kind === 'attached') {
          const { sizeBytes, isTakenOver } = said;
          resolve({ sizeBytes, isTakenOver, pid: child.pid ?? 0 });
        } else if (said?.kind === 'failed') {
          reject(new RemoteError(said.code, said.message));
        } else reject(ended(options, null));
      });
    });
    child.once('error', (error) => settle(() => reject(error)));
    child.once('exit', (status) => settle(() => reject(ended(options, status))));
  });

/** Our own program speaks, but what crosses a process is looked at. */
function messageFrom(message: unknown): SupervisorMessage | undefined {
  if (typeof message !== 'object' || message === null || !('kind' in message)) return undefined;
  // eslint-disable-next-line typescript/no-unsafe-type-assertion
  return message as SupervisorMessage;
}

function ended(options: SupervisorOptions, status: number | null): SupervisorError {
  const message = `Cannot attach ${options.device}: the program that was to watch it ended with status ${status}`;
  return new SupervisorError('supervisor-ended', message, { status });
}
