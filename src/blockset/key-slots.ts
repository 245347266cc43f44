/**
 * The content of `keys.json`: the master key of a store, wrapped once for each passphrase or key file that
 * opens it. FORMAT.md has the table.
 *
 * A passphrase becomes a wrapping key by scrypt, whose cost is recorded with the slot, a key file by
 * HKDF-SHA256: what is in it is expected to be random. All that a slot says is authenticated by its wrapping,
 * and a checksum over all slots tells a damaged file from a wrong key.
 *
 * The file may come from anybody: what it asks for in memory and time is bounded before it is given.
 *
 * Everything here works on bytes; `store-keys.ts` reads and writes the file.
 */

import { hkdfSync, randomBytes, scrypt } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { promisify } from 'node:util';
import { assert, CorruptionError, LIMITS, messageOf } from '../base/index.ts';
import { checksum } from '../records/index.ts';
import { StoreError } from './errors.ts';
import { MasterKey } from './master-key.ts';
import { CIPHER_OVERHEAD_BYTES, SECRET_BYTES, ValueCipher } from './value-cipher.ts';

const scryptLater = promisify<string, Buffer, number, object, Buffer>(scrypt);

export const KEYS_VERSION = 0;
const SALT_BYTES = 32;

/** What opens an encrypted store. Never to be logged, and never in a message. */
export type StoreKey = { readonly keyFile: string } | { readonly passphrase: string };

/** What one guess at a passphrase costs: `128 * n * r` bytes of memory, and time by `n * r * p`. */
export interface ScryptCost {
  readonly n: number;
  readonly r: number;
  readonly p: number;
}

/** 64 MiB and about 0.3 s: as strong as OWASP's first choice (n 2^17, p 1) for half its memory. */
export const SCRYPT_COST: ScryptCost = { n: 2 ** 16, r: 8, p: 2 };

/** What anybody may see of a slot. */
export interface KeySlot {
  /** From 1; not used again while the store has other slots. */
  readonly slot: number;
  readonly kind: 'passphrase' | 'key-file';
  /** Milliseconds since the Unix epoch; for people. */
  readonly createdMs: number;
}

export interface WrappedSlot extends KeySlot {
  /** Id of the store that the slot is of. */
  readonly store: string;
  readonly salt: Buffer;
  /** For a passphrase. */
  readonly scrypt: ScryptCost | undefined;
  /** The master key: nonce, ciphertext, tag. */
  readonly wrapped: Buffer;
}

/** A slot's description without what it wraps, in one order: bound to the wrapped key, and a part of the file. */
function describeSlot(slot: Omit<WrappedSlot, 'wrapped'>): Record<string, unknown> {
  const { scrypt: cost } = slot;
  return {
    store: slot.store,
    slot: slot.slot,
    kind: slot.kind,
    createdMs: slot.createdMs,
    salt: slot.salt.toString('hex'),
    ...(cost === undefined ? {} : { scrypt: { n: cost.n, r: cost.r, p: cost.p } }),
  };
}

function contextOf(slot: Omit<WrappedSlot, 'wrapped'>): Buffer {
  return Buffer.from(JSON.stringify(describeSlot(slot)));
}

/**
 * Wraps the master key for one more passphrase or key file.
 *
 * @throws {StoreError} `bad-key` where the key file cannot be read or is too short, or the passphrase is empty.
 */
export async function wrapMaster(
  master: MasterKey,
  key: StoreKey,
  options: {
    readonly store: string;
    readonly slot: number;
    readonly createdMs: number;
    readonly cost?: ScryptCost;
  },
): Promise<WrappedSlot> {
  const { store, slot, createdMs, cost = SCRYPT_COST } = options;
  assert(fits(cost), `A passphrase's cost of ${JSON.stringify(cost)} is out of bounds`);
  const described: Omit<WrappedSlot, 'wrapped'> = {
    store,
    slot,
    kind: 'passphrase' in key ? 'passphrase' : 'key-file',
    createdMs,
    salt: randomBytes(SALT_BYTES),
    scrypt: 'passphrase' in key ? cost : undefined,
  };
  const wrapper = await wrapperOf(described, key);
  return { ...described, wrapped: master.wrapWith(wrapper, contextOf(described)) };
}

/**
 * The master key that the slot holds, or undefined where the key is not the slot's. The key must be of the
 * slot's kind.
 *
 * @throws {StoreError} `bad-key` as `wrapMaster`.
 */
export async function openSlot(slot: WrappedSlot, key: StoreKey): Promise<MasterKey | undefined> {
  const wrapper = await wrapperOf(slot, key);
  const secret = wrapper.decrypt(contextOf(slot), slot.wrapped);
  return secret?.length === SECRET_BYTES ? new MasterKey(secret) : undefined;
}

async function wrapperOf(slot: Omit<WrappedSlot, 'wrapped'>, key: StoreKey): Promise<ValueCipher> {
  if ('keyFile' in key) {
    const content = readKeyFile(key.keyFile);
    return new ValueCipher(
      Buffer.from(hkdfSync('sha256', content, slot.salt, 'cowbell key file', SECRET_BYTES)),
    );
  }
  // One passphrase, however the keyboard composed its letters.
  const passphrase = key.passphrase.normalize('NFC');
  const lengthBytes = Buffer.byteLength(passphrase);
  if (lengthBytes === 0 || lengthBytes > LIMITS.passphraseBytesMax) {
    throw new StoreError(
      'bad-key',
      `The passphrase has ${lengthBytes} bytes, wanted 1 to ${LIMITS.passphraseBytesMax}`,
      { path: undefined },
    );
  }
  assert(slot.scrypt !== undefined, 'A slot for a passphrase has no cost');
  const { n, r, p } = slot.scrypt;
  const maxmem = 2 * LIMITS.scryptMemoryBytesMax;
  return new ValueCipher(await scryptLater(passphrase, slot.salt, SECRET_BYTES, { N: n, r, p, maxmem }));
}

function readKeyFile(path: string): Buffer {
  const { keyFileBytesMin: min, keyFileBytesMax: max } = LIMITS;
  let content: Buffer;
  try {
    const { size } = statSync(path);
    // A device has no size and no end.
    content = size > max ? Buffer.alloc(0) : readFileSync(path);
    if (size > max) throw new RangeError(`it has ${size} bytes, wanted at most ${max}`);
  } catch (error) {
    throw new StoreError(
      'bad-key',
      `Key file ${path} cannot be used: ${messageOf(error)}`,
      { path },
      { cause: error },
    );
  }
  if (content.length >= min) return content;
  const message = `Key file ${path} has ${content.length} bytes, wanted at least ${min} random ones`;
  throw new StoreError('bad-key', message, { path });
}

function fits({ n, r, p }: ScryptCost): boolean {
  const isWhole = [n, r, p].every((value) => Number.isSafeInteger(value) && value >= 1);
  return (
    isWhole &&
    n >= 2 &&
    Number.isInteger(Math.log2(n)) &&
    128 * n * r <= LIMITS.scryptMemoryBytesMax &&
    n * r * p <= LIMITS.scryptWorkMax
  );
}

// ---- the file -----------------------------------------------------------------------------------------

/** The bytes of `keys.json`. */
export function encodeSlots(slots: readonly WrappedSlot[]): Buffer {
  const entries = slots.map((slot) => ({ ...describeSlot(slot), wrapped: slot.wrapped.toString('hex') }));
  const document = { cowbellKeys: KEYS_VERSION, checksum: checksumOf(entries), slots: entries };
  return Buffer.from(`${JSON.stringify(document, null, 2)}\n`);
}

function checksumOf(entries: readonly unknown[]): string {
  return checksum(Buffer.from(JSON.stringify(entries))).toString('hex');
}

/**
 * The slots in the bytes of `keys.json`, at least one.
 *
 * @throws {StoreError} `newer-format`.
 * @throws {CorruptionError} where they are damaged, or ask for more memory or time than any that was written.
 */
export function decodeSlots(bytes: Buffer, path: string): readonly WrappedSlot[] {
  const document = asRecord(parse(bytes, path), path);
  const version = document['cowbellKeys'];
  if (typeof version === 'number' && version > KEYS_VERSION) {
    const message = `Keys ${path} have format ${version}, this version reads up to ${KEYS_VERSION}`;
    throw new StoreError('newer-format', message, { path, format: version });
  }
  const entries = document['slots'];
  if (version !== KEYS_VERSION || !Array.isArray(entries)) throw damaged(path, 'there are no slots');
  if (entries.length === 0 || entries.length > LIMITS.keySlotCountMax) {
    throw damaged(path, `there are ${entries.length} slots, wanted 1 to ${LIMITS.keySlotCountMax}`);
  }
  if (document['checksum'] !== checksumOf(entries)) throw damaged(path, 'the checksum does not match');
  return entries.map((entry: unknown) => decodeSlot(asRecord(entry, path), path));
}

function decodeSlot(entry: Readonly<Record<string, unknown>>, path: string): WrappedSlot {
  const { kind } = entry;
  if (kind !== 'passphrase' && kind !== 'key-file') throw damaged(path, 'a slot is of no known kind');
  const { store } = entry;
  if (typeof store !== 'string') throw damaged(path, 'a slot does not say its store');
  return {
    store,
    slot: countOf(entry['slot'], path),
    kind,
    createdMs: countOf(entry['createdMs'], path),
    salt: hexOf(entry['salt'], SALT_BYTES, path),
    scrypt: kind === 'passphrase' ? costOf(entry['scrypt'], path) : undefined,
    wrapped: hexOf(entry['wrapped'], SECRET_BYTES + CIPHER_OVERHEAD_BYTES, path),
  };
}

function costOf(value: unknown, path: string): ScryptCost {
  const record = asRecord(value, path);
  const cost = {
    n: countOf(record['n'], path),
    r: countOf(record['r'], path),
    p: countOf(record['p'], path),
  };
  if (fits(cost)) return cost;
  throw damaged(path, `a passphrase's cost of n ${cost.n}, r ${cost.r}, p ${cost.p} is out of bounds`);
}

function parse(bytes: Buffer, path: string): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    throw damaged(path, 'it is no JSON');
  }
}

function asRecord(value: unknown, path: string): Readonly<Record<string, unknown>> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return { ...value };
  throw damaged(path, 'a part is no object');
}

function countOf(value: unknown, path: string): number {
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
  throw damaged(path, 'a number is none');
}

function hexOf(value: unknown, lengthBytes: number, path: string): Buffer {
  const isHex = typeof value === 'string' && /^[0-9a-f]*$/.test(value) && value.length === 2 * lengthBytes;
  if (isHex) return Buffer.from(value, 'hex');
  throw damaged(path, `a text is not ${lengthBytes} bytes in hexadecimal digits`);
}

function damaged(path: string, what: string): CorruptionError {
  return new CorruptionError(`Keys ${path} are damaged: ${what}`, { where: path });
}
