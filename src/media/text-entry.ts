/**
 * The small entries of a medium that people may want to read with `tar -x`: one line of JSON, then a line with
 * the BLAKE3 of the first, 64 hexadecimal digits. Pure.
 */

import { CorruptionError } from '../base/index.ts';
import { digest } from '../records/index.ts';

export type JsonRecord = Readonly<Record<string, unknown>>;

export function encodeText(value: object): Buffer {
  const line = Buffer.from(JSON.stringify(value));
  return Buffer.concat([line, Buffer.from(`\n${digest(line).toString('hex')}\n`)]);
}

/** @throws {CorruptionError} where the entry is not whole. */
export function decodeText(bytes: Buffer, where: string): JsonRecord {
  const end = bytes.indexOf(0x0a);
  const line = bytes.subarray(0, Math.max(end, 0));
  const sum = bytes.toString('latin1', end + 1).trim();
  const found = digest(line).toString('hex');
  if (end <= 0 || sum !== found) {
    throw new CorruptionError(`${where} is damaged: its text does not match its checksum`, {
      where,
      expected: sum,
      found,
    });
  }
  const value: unknown = JSON.parse(line.toString());
  if (typeof value === 'object' && value !== null) return { ...value };
  throw new CorruptionError(`${where} is no record`, { where });
}

export function textField(record: JsonRecord, name: string, where: string): string {
  const value = record[name];
  if (typeof value === 'string') return value;
  throw new CorruptionError(`${where} has ${name} ${JSON.stringify(value)}, wanted text`, { where });
}

export function countField(record: JsonRecord, name: string, where: string): number {
  const value = record[name];
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
  throw new CorruptionError(`${where} has ${name} ${JSON.stringify(value)}, wanted a count`, { where });
}

export function listField(record: JsonRecord, name: string, where: string): readonly unknown[] {
  const value = record[name];
  if (Array.isArray(value)) return value;
  throw new CorruptionError(`${where} has ${name} ${JSON.stringify(value)}, wanted a list`, { where });
}
