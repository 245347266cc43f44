/**
 * The one table from error codes to NBD error values (NBD proto.md § Error values), and back to names.
 *
 * Two kinds of code come in: errno names of the operating system (`ENOSPC`) and the `code` of a BlockError
 * (`no-space`). The protocol allows eight values only; a code that is not in the table becomes EIO, and the
 * caller is told, so that it is logged instead of vanishing into a number.
 */

import { systemCode } from '../base/index.ts';
import { NBD_ERROR } from './codec.ts';

export type NbdErrorName = keyof typeof NBD_ERROR;

const VALUE_BY_CODE: ReadonlyMap<string, number> = new Map([
  ['EPERM', NBD_ERROR.EPERM],
  ['EACCES', NBD_ERROR.EPERM],
  ['EROFS', NBD_ERROR.EPERM],
  ['EIO', NBD_ERROR.EIO],
  ['ENOMEM', NBD_ERROR.ENOMEM],
  ['EINVAL', NBD_ERROR.EINVAL],
  ['ENOSPC', NBD_ERROR.ENOSPC],
  ['EDQUOT', NBD_ERROR.ENOSPC],
  ['EFBIG', NBD_ERROR.ENOSPC],
  // The protocol keeps EOVERFLOW and ENOTSUP for features that were negotiated.
  ['EOVERFLOW', NBD_ERROR.EINVAL],
  ['ENOTSUP', NBD_ERROR.EINVAL],
  ['EOPNOTSUPP', NBD_ERROR.EINVAL],
  ['ESHUTDOWN', NBD_ERROR.ESHUTDOWN],

  ['no-space', NBD_ERROR.ENOSPC],
  ['snapshot-full', NBD_ERROR.ENOSPC],
  ['snapshot-failed', NBD_ERROR.EIO],
  ['snapshot-gone', NBD_ERROR.EIO],
  ['read-only', NBD_ERROR.EPERM],
  ['poisoned', NBD_ERROR.EIO],
  ['io', NBD_ERROR.EIO],
  ['connection-lost', NBD_ERROR.EIO],
  ['reader-died', NBD_ERROR.EIO],
  ['invalid-request', NBD_ERROR.EINVAL],
  ['out-of-memory', NBD_ERROR.ENOMEM],
  ['not-supported', NBD_ERROR.EINVAL],
  // Only of zeroes with NBD_CMD_FLAG_FAST_ZERO, which is where the protocol has ENOTSUP.
  ['not-fast', NBD_ERROR.ENOTSUP],
  ['overflow', NBD_ERROR.EINVAL],
  ['shutting-down', NBD_ERROR.ESHUTDOWN],
  ['closed', NBD_ERROR.ESHUTDOWN],
]);

/** @returns the NBD error value of a code, or undefined where the table does not know it. */
export function nbdErrorOfCode(code: string): number | undefined {
  return VALUE_BY_CODE.get(code);
}

/**
 * What clients are told of an error, by its code or else by its value. An error's own message may name paths,
 * addresses and sizes of this machine, so it is never sent: clients may be strangers.
 */
const SENTENCE_BY_CODE: ReadonlyMap<string, string> = new Map([
  ['poisoned', 'nothing may be written since a failed flush or write, until somebody checks the volume'],
]);

const SENTENCE_BY_VALUE: ReadonlyMap<number, string> = new Map([
  [NBD_ERROR.EPERM, 'the server may not do that'],
  [NBD_ERROR.EIO, 'the device behind the export failed'],
  [NBD_ERROR.ENOMEM, 'the server has too little memory'],
  [NBD_ERROR.EINVAL, 'the device behind the export refused the request'],
  [NBD_ERROR.ENOTSUP, 'that would be no faster than a write'],
  [NBD_ERROR.ENOSPC, 'there is no space left behind the export'],
  [NBD_ERROR.ESHUTDOWN, 'the device behind the export is being shut down'],
]);

/** The end of a sentence about an error that `value` was made of: why the request failed. */
export function reasonOf(error: unknown, value: number): string {
  return (
    SENTENCE_BY_CODE.get(systemCode(error) ?? '') ??
    SENTENCE_BY_VALUE.get(value) ??
    'the device behind the export failed'
  );
}

/**
 * The NBD error value of anything a device threw.
 *
 * @param onUnmapped called when no code of the error is in the table; the value is then EIO.
 */
export function nbdErrorOf(error: unknown, onUnmapped: (error: unknown) => void): number {
  const code = systemCode(error);
  const value = code === undefined ? undefined : VALUE_BY_CODE.get(code);
  if (value !== undefined) return value;
  onUnmapped(error);
  return NBD_ERROR.EIO;
}

const NAME_BY_VALUE: ReadonlyMap<number, NbdErrorName> = new Map([
  [NBD_ERROR.EPERM, 'EPERM'],
  [NBD_ERROR.EIO, 'EIO'],
  [NBD_ERROR.ENOMEM, 'ENOMEM'],
  [NBD_ERROR.EINVAL, 'EINVAL'],
  [NBD_ERROR.ENOSPC, 'ENOSPC'],
  [NBD_ERROR.EOVERFLOW, 'EOVERFLOW'],
  [NBD_ERROR.ENOTSUP, 'ENOTSUP'],
  [NBD_ERROR.ESHUTDOWN, 'ESHUTDOWN'],
]);

/** The name of an error value. A value the protocol does not list counts as EINVAL, as it asks. */
export function nbdErrorName(value: number): NbdErrorName {
  return NAME_BY_VALUE.get(value) ?? 'EINVAL';
}
