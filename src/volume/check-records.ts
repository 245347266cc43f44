/** What a record of a volume's state must have, to be taken for one of its kind (`check-state.ts`). */

import type { OpenRecord, PointRecord, SnapshotRecord } from './state.ts';

export function parse(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    return undefined;
  }
}

export function isPoint(value: unknown): value is PointRecord {
  return isRecord(value) && typeof value['point'] === 'string' && typeof value['createdMs'] === 'number';
}

export function isOpenRecord(value: unknown): value is OpenRecord {
  return isRecord(value) && typeof value['number'] === 'number' && typeof value['isClean'] === 'boolean';
}

export function isSnapshot(value: unknown): value is SnapshotRecord {
  return (
    isRecord(value) &&
    typeof value['number'] === 'number' &&
    typeof value['name'] === 'string' &&
    typeof value['storeId'] === 'string' &&
    typeof value['sizeBytes'] === 'number'
  );
}

export function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null;
}
