/** Calls of target devices: finished at once or later, and failures that name the target. */

import { AssertionError, type MaybePromise, messageOf } from '../base/index.ts';
import type { RestoreTarget } from './planner.ts';

/** The failure of one target, before it is known which others are incomplete. */
export class TargetFailure extends Error {
  readonly target: RestoreTarget;

  constructor(target: RestoreTarget, action: string, cause: unknown) {
    super(`${action} target ${target.name} (${target.device.description}) failed: ${messageOf(cause)}`, {
      cause,
    });
    this.target = target;
  }
}

/** Runs a call of a device; its failure, thrown or rejected, names the target. @throws {TargetFailure} */
export function named(target: RestoreTarget, action: string, call: () => Promise<void>): Promise<void>;
export function named(
  target: RestoreTarget,
  action: string,
  call: () => MaybePromise<void>,
): MaybePromise<void>;
export function named(
  target: RestoreTarget,
  action: string,
  call: () => MaybePromise<void>,
): MaybePromise<void> {
  const fail = (error: unknown): never => {
    if (error instanceof AssertionError) throw error;
    throw new TargetFailure(target, action, error);
  };
  try {
    return call()?.catch(fail);
  } catch (error) {
    return fail(error);
  }
}

/** Calls `count` when the call has succeeded. */
export function counted(running: MaybePromise<void>, count: () => void): MaybePromise<void> {
  if (running !== undefined) return running.then(count);
  count();
}

/** Lets timers and signals have their turn. */
export function loopTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
