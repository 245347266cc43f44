/**
 * One request while it runs against the device, and who runs it.
 *
 * An operation is handed to the device as the options of a write, so that the common case, a write that
 * finishes before its call returns, allocates nothing: the transmission then uses the object again.
 */

import type { ZeroOptions } from '../device/index.ts';

/** The connection's side of an operation. */
export interface OperationOwner {
  /** The client has gone or has sent its last request: what still runs for it is an orphan. */
  readonly isGone: boolean;
  /** Operations of this owner that the fence knows; kept by the fence. */
  fencedCount: number;
  operationWaits(operation: Operation): void;
  operationResumes(operation: Operation): void;
  /** The fence held the operation back and lets it run now. */
  operationReleased(operation: Operation): void;
}

export class Operation implements ZeroOptions {
  readonly owner: OperationOwner;
  command = 0;
  cookieHigh = 0;
  cookieLow = 0;
  offsetBytes = 0;
  lengthBytes = 0;
  fua = false;
  mayTrim = true;
  /** Bytes that the request holds in memory: of a write or a read, none for others. */
  payloadBytes = 0;
  /** A write's bytes. */
  source: Buffer | undefined = undefined;
  /** A read's reply, header included, once the read has to wait. */
  reply: Buffer | undefined = undefined;

  /** Counted as waiting for a backup instead of running. */
  isWaiting = false;
  /** A device has been told to call back, or was entered into sets: the object is not used again. */
  isUsedUp = false;
  isSettled = false;
  /** The source is part of the input that arrived, and keeps all of it in memory. */
  pinsInput = false;

  /** Operations that the fence holds until this one has finished. */
  dependents: Operation[] | undefined = undefined;
  /** How many operations this one still has to wait for. */
  blockerCount = 0;
  isFenced = false;

  readonly onWaiting = (): void => {
    this.isUsedUp = true;
    if (!this.isSettled) this.owner.operationWaits(this);
  };

  readonly onResumed = (): void => {
    if (!this.isSettled) this.owner.operationResumes(this);
  };

  constructor(owner: OperationOwner) {
    this.owner = owner;
  }
}
