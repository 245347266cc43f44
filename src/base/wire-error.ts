/** Errors between processes and threads: enough of an error travels to keep its kind, code and message. */

import { CorruptionError, type CorruptionPlace, messageOf, systemCode } from './errors.ts';

export interface WireError {
  readonly message: string;
  readonly code: string | undefined;
  /** Set for corruption: exit status 3 must survive the way. */
  readonly corruption: CorruptionPlace | undefined;
}

export function toWireError(error: unknown): WireError {
  return {
    message: messageOf(error),
    code: systemCode(error),
    corruption: error instanceof CorruptionError ? error.place : undefined,
  };
}

/** The error that was sent as an error here; of any kind but corruption only the code tells what it was. */
export function errorFromWire(error: WireError): Error {
  if (error.corruption !== undefined) return new CorruptionError(error.message, error.corruption);
  return Object.assign(new Error(error.message), error.code === undefined ? {} : { code: error.code });
}
