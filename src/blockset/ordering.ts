/**
 * Ordering metadata: how a logical object is put together again from blocks that were stored in any order
 * (seeds/2, Fig. 13-18).
 *
 * Three forms are understood, each by extents (runs of blocks) with single blocks as the shortest extent:
 *
 * - `addresses`: position in the object to address on the device. Known before anything is copied; a stored
 *   block must then say its address, which in Cowbell the set's own `order` does (the labels);
 * - `arrivals`: one row for each extent as it arrived, giving its position and address. Stored blocks carry
 *   nothing;
 * - `positions`: for each position, which arrival it is. No addresses at all.
 *
 * All three become one `Ordering`: position to arrival, whole and without overlap. Where the metadata does
 * not say that much it is damaged, and nothing is guessed.
 *
 * Units are blocks of the object; an address is the block's number on the device, so that track and offset
 * in the track follow from the blocks of a track. Positions, addresses and arrivals count from 0.
 */

import { assert, CorruptionError } from '../base/index.ts';
import { type LmdbDatabaseView } from '../records/index.ts';

/** `count` blocks of the object from `position` on are at `address` on the device. */
export interface AddressRow {
  readonly position: number;
  readonly address: number;
  readonly count: number;
}

/** The next `count` positions of the object are the arrivals from `arrival` on. */
export interface PositionRow {
  readonly arrival: number;
  readonly count: number;
}

export type OrderingForm =
  | { readonly form: 'addresses'; readonly rows: readonly AddressRow[] }
  | { readonly form: 'arrivals'; readonly rows: readonly AddressRow[] }
  | { readonly form: 'positions'; readonly rows: readonly PositionRow[] };

/** `count` blocks from `position` on are the arrivals from `arrival` on; rows ascend without gaps. */
export interface OrderingRow {
  readonly position: number;
  readonly arrival: number;
  readonly count: number;
}

export type Ordering = readonly OrderingRow[];

/** Where the block at an address stands among the arrivals, and how many follow in step; undefined where it is not stored. */
export type ArrivalLookup = (address: number) => { arrival: number; count: number } | undefined;

/** An object of the volume as the set records it. */
export interface StoredObject {
  readonly name: string;
  readonly blockSizeBytes: number;
  readonly ordering: OrderingForm;
}

/**
 * Brings any form to positions and arrivals.
 *
 * @param labels finds a block by the address it carries; only the form `addresses` asks it.
 * @throws {CorruptionError} where a block is missing, or in two places.
 */
export function normalise(form: OrderingForm, labels: ArrivalLookup, where: string): Ordering {
  const rows = looseRows(form, labels, where).sort((a, b) => a.position - b.position);
  let next = 0;
  for (const row of rows) {
    if (row.position !== next) throw corrupt(where, `position ${next} is missing or in two places`);
    next += row.count;
  }
  if (next === 0) throw corrupt(where, 'there is none');
  const byArrival = rows.toSorted((a, b) => a.arrival - b.arrival);
  for (const [index, row] of byArrival.entries()) {
    const after = byArrival[index + 1];
    if (after !== undefined && row.arrival + row.count > after.arrival) {
      throw corrupt(where, `arrival ${after.arrival} stands at two positions`);
    }
  }
  return rows;
}

function looseRows(form: OrderingForm, labels: ArrivalLookup, where: string): OrderingRow[] {
  const rows: OrderingRow[] = [];
  switch (form.form) {
    case 'addresses':
      for (const row of form.rows) rows.push(...labelledRows(row, labels, where));
      return rows;
    case 'arrivals': {
      let arrival = 0;
      for (const { position, count } of form.rows) {
        rows.push({ position, arrival, count });
        arrival += count;
      }
      return rows;
    }
    case 'positions': {
      let position = 0;
      for (const { arrival, count } of form.rows) {
        rows.push({ position, arrival, count });
        position += count;
      }
      return rows;
    }
  }
}

/** An extent on the device may have arrived in several pieces. */
function* labelledRows(row: AddressRow, labels: ArrivalLookup, where: string): Generator<OrderingRow> {
  let done = 0;
  while (done < row.count) {
    const found = labels(row.address + done);
    if (found === undefined) throw corrupt(where, `the block at address ${row.address + done} is not stored`);
    const count = Math.min(found.count, row.count - done);
    yield { position: row.position + done, arrival: found.arrival, count };
    done += count;
  }
}

// ---- as stored ----------------------------------------------------------------------------------------

const FORMS = ['addresses', 'arrivals', 'positions'] as const;
const HEAD_BYTES = 16;
const ROW_BYTES = 20;
const CHUNK_ROWS = 8192;

/** The key of one record of an object: kind 1, the name, a zero, then 0 for the head or the chunk from 1. */
function objectKey(name: string, chunk: number): Buffer {
  const number = Buffer.alloc(4);
  number.writeUInt32BE(chunk);
  return Buffer.concat([Buffer.from([1]), Buffer.from(name), Buffer.from([0]), number]);
}

/** Puts the object's records; inside a transaction of the database's file. */
export function putObject(database: LmdbDatabaseView, object: StoredObject): void {
  const { form, rows } = object.ordering;
  assert(!object.name.includes('\0'), 'A name has no zero byte');
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUInt8(FORMS.indexOf(form), 0);
  head.writeUInt32BE(object.blockSizeBytes, 4);
  head.writeBigUInt64BE(BigInt(rows.length), 8);
  database.put(objectKey(object.name, 0), head);
  for (let start = 0; start < rows.length; start += CHUNK_ROWS) {
    const chunk = rows.slice(start, start + CHUNK_ROWS);
    const bytes = Buffer.alloc(chunk.length * ROW_BYTES);
    for (const [index, row] of chunk.entries()) {
      const at = index * ROW_BYTES;
      bytes.writeBigUInt64BE('position' in row ? BigInt(row.position) : 0n, at);
      bytes.writeBigUInt64BE(BigInt('address' in row ? row.address : row.arrival), at + 8);
      bytes.writeUInt32BE(row.count, at + 16);
    }
    database.put(objectKey(object.name, 1 + start / CHUNK_ROWS), bytes);
  }
}

/**
 * @param storedName as it stands in the records' keys.
 * @throws {CorruptionError} where the object has no ordering metadata, or not all of it.
 */
export function getObject(
  database: LmdbDatabaseView,
  { name, storedName }: { readonly name: string; readonly storedName: string },
  where: string,
): StoredObject {
  const head = database.get(objectKey(storedName, 0));
  if (head?.length !== HEAD_BYTES) throw corrupt(`${where}, object ${name}`, 'there is none');
  const form = FORMS[head.readUInt8(0)];
  const rowCount = Number(head.readBigUInt64BE(8));
  const rows: { position: number; address: number; count: number }[] = [];
  for (let chunk = 1; rows.length < rowCount; chunk += 1) {
    const bytes = database.get(objectKey(storedName, chunk));
    if (bytes === undefined || bytes.length === 0 || bytes.length % ROW_BYTES !== 0) {
      throw corrupt(`${where}, object ${name}`, `only ${rows.length} of ${rowCount} rows are there`);
    }
    for (let at = 0; at < bytes.length; at += ROW_BYTES) {
      rows.push({
        position: Number(bytes.readBigUInt64BE(at)),
        address: Number(bytes.readBigUInt64BE(at + 8)),
        count: bytes.readUInt32BE(at + 16),
      });
    }
  }
  const blockSizeBytes = head.readUInt32BE(4);
  if (form === 'addresses' || form === 'arrivals') return { name, blockSizeBytes, ordering: { form, rows } };
  if (form === undefined) throw corrupt(`${where}, object ${name}`, `its form is ${head.readUInt8(0)}`);
  const positions = rows.map(({ address, count }) => ({ arrival: address, count }));
  return { name, blockSizeBytes, ordering: { form, rows: positions } };
}

function corrupt(where: string, what: string): CorruptionError {
  return new CorruptionError(`Ordering metadata of ${where} is damaged: ${what}`, { where });
}
