/**
 * One request while it runs against the device, and who runs it.
 *
 * An operation is handed to the device as the options of a write, so that the common case, a write that
 * finishes before its call returns, allocates nothing: the transmission then uses the object again.
 */

import type { ZeroOptions } from '../device/index.ts';
import { COMMAND, type ReplyAddress } from './codec.ts';
import type { SelectedContext } from './meta-context.ts';
import type { ReplyChunk } from './reply-writer.ts';

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

export class Operation implements ZeroOptions, ReplyAddress {
  readonly owner: OperationOwner;
  command = 0;
  cookieHigh = 0;
  cookieLow = 0;
  offsetBytes = 0;
  offsetHigh = 0;
  offsetLow = 0;
  lengthBytes = 0;
  fua = false;
  mayTrim = true;
  fast = false;
  /** The command's flags, as on the wire. */
  flags = 0;
  /** Bytes that the request holds in memory while it runs, its reply's included. */
  payloadBytes = 0;
  /** A write's bytes. */
  source: Buffer | undefined = undefined;
  /** A read's reply, header included, once the read has to wait. */
  reply: Buffer | undefined = undefined;
  /** A reply of several chunks, once they are there. */
  chunks: readonly ReplyChunk[] | undefined = undefined;
  /** What a block status asks. */
  contexts: readonly SelectedContext[] = [];

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

/** Whether the fence must know: changes, and flushes behind them. */
export function isOrdered(operation: Operation): boolean {
  switch (operation.command) {
    case COMMAND.write:
    case COMMAND.writeZeroes:
    case COMMAND.trim:
    case COMMAND.flush:
      return true;
    default:
      return false;
  }
}
