/**
 * The keys of an encrypted store: one master key, and a key for each file that it wraps.
 *
 *     passphrase or key file --(keys.json)--> master key --(record `key`)--> key of one file of a set
 *
 * The master key encrypts nothing by itself: a key is derived from it for each purpose (HKDF-SHA256), so that
 * what one is used for says nothing about another.
 *
 * Each file has a random key of its own, which lies wrapped in the file's record `key`. A file can so be moved
 * by itself, and be taken over by another store by wrapping the key again (`wrapSetKey`): the record is not
 * under the seal, which stays the same. Exchanging it gains nothing, since it must unwrap to the one key that
 * opens all other records.
 */

import { hkdfSync, randomBytes } from 'node:crypto';
import { assert, CorruptionError } from '../base/index.ts';
import { StoreError } from './errors.ts';
import { SECRET_BYTES, ValueCipher } from './value-cipher.ts';

const WRAP_CONTEXT = Buffer.from('set key');

/** The key of one file of a set, plain, for the writer of the file; plain data, so that it can travel to a thread. */
export interface SetKey {
  /** 32 bytes. */
  readonly secret: Uint8Array;
  /** The record `key` of the file. */
  readonly record: Uint8Array;
}

export class MasterKey {
  readonly #secret: Buffer;
  readonly #wrapper: ValueCipher;
  /** For the values of the catalog. */
  readonly catalog: ValueCipher;

  /** @param secret 32 bytes; kept, not copied. */
  constructor(secret: Buffer) {
    assert(secret.length === SECRET_BYTES, `A key has ${secret.length} bytes, wanted ${SECRET_BYTES}`);
    this.#secret = secret;
    this.#wrapper = new ValueCipher(this.#derive('cowbell set keys'));
    this.catalog = new ValueCipher(this.#derive('cowbell catalog'));
  }

  static random(): MasterKey {
    return new MasterKey(randomBytes(SECRET_BYTES));
  }

  #derive(purpose: string): Buffer {
    return Buffer.from(hkdfSync('sha256', this.#secret, '', purpose, SECRET_BYTES));
  }

  /** The master key under another; for a slot of `keys.json`. */
  wrapWith(wrapper: ValueCipher, context: Buffer): Buffer {
    return Buffer.concat(wrapper.encrypt(context, [this.#secret]));
  }

  /** A new random key for one file. */
  newSetKey(): SetKey {
    return this.wrapSetKey(randomBytes(SECRET_BYTES));
  }

  /** A key that another master key gave, for the same file in this store. */
  wrapSetKey(secret: Uint8Array): SetKey {
    const record = this.#wrapper.encrypt(WRAP_CONTEXT, [Buffer.from(secret)]);
    return { secret, record: Buffer.concat(record) };
  }

  /**
   * The key that a file's record `key` holds.
   *
   * @throws {CorruptionError} where the record was damaged, or wrapped by another master key.
   */
  openSetKey(record: Buffer, where: string): SetKey {
    const secret = this.#wrapper.decrypt(WRAP_CONTEXT, record);
    if (secret?.length === SECRET_BYTES) return { secret, record };
    throw new CorruptionError(`The key of ${where} does not open with the key of its store`, { where });
  }
}

/**
 * What decrypts one file of a set; undefined where the store is not encrypted.
 *
 * @param record the file's record `key`.
 * @param master of the store.
 * @throws {StoreError} `key-needed` where there is a record and no master key.
 * @throws {CorruptionError} where the record does not open, or a file of an encrypted store has none: it is
 *   not what this store wrote.
 */
export function fileCipher(
  record: Buffer | undefined,
  master: MasterKey | undefined,
  path: string,
): ValueCipher | undefined {
  if (record === undefined) {
    if (master === undefined) return undefined;
    const message = `Block set ${path} is not encrypted, as its store is`;
    throw new CorruptionError(message, { where: path });
  }
  if (master !== undefined) return new ValueCipher(master.openSetKey(record, path).secret);
  throw new StoreError('key-needed', `Block set ${path} is encrypted, wanted the key of its store`, { path });
}
