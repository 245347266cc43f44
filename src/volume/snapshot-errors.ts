/** Errors about a snapshot's name. */

import { LIMITS } from '../base/index.ts';
import { VolumeError } from './errors.ts';

const NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]*$/;

/** @throws {VolumeError} `invalid-name` */
export function assertSnapshotName(name: string): void {
  const { snapshotNameLengthMax } = LIMITS;
  if (name.length <= snapshotNameLengthMax && NAME.test(name)) return;
  const message = `Snapshot name ${JSON.stringify(name)} is not made of up to ${snapshotNameLengthMax} letters, digits, '.', '_' and '-', the first no '.' or '-'`;
  throw new VolumeError('invalid-name', message, { name });
}

export function gone(name: string): VolumeError {
  return new VolumeError('snapshot-gone', `Snapshot ${name} was deleted or dropped`, { name });
}

export function unknown(name: string): VolumeError {
  return new VolumeError('unknown-snapshot', `The volume has no snapshot ${name}`, { name });
}
