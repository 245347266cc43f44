/**
 * Encryption of the values of an LMDB file: a layer over `LmdbFile` that is one itself.
 *
 * Each value is AES-256-GCM under one key: 12 random bytes of nonce, the ciphertext, 16 bytes of tag. What is
 * authenticated beside it is the database's name, a zero byte and the record's key, so that values cannot be
 * exchanged for each other within a file; files have keys of their own, so that they cannot between files.
 *
 * It lies above the checksums of `records/lmdb.ts`, which therefore are of ciphertext: structure, checksums
 * and the seal of a set can be checked by whoever has no key. A random nonce is safe for 2^32 values under one
 * key, and a set has fewer: arrival numbers are 32 bits, and a frame is counted in tracks.
 *
 * A record's key is stored as it is, and so is the length of its value. Records that say how to get at the key
 * (`CLEAR_KEYS`) are not encrypted.
 */

import { createCipheriv, createDecipheriv, createHmac, randomBytes } from 'node:crypto';
import { assert, CorruptionError, type SyncName } from '../base/index.ts';
import {
  CHECKSUM_BYTES,
  type LmdbDatabaseView,
  type LmdbEntry,
  type LmdbFile,
  type LmdbRange,
} from '../records/index.ts';
import { KEY_KEY, SEAL_KEY } from './set-format.ts';

export const SECRET_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const ALGORITHM = 'aes-256-gcm';

/** What encryption adds to a value. */
export const CIPHER_OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES;

/** Records of the database `header` that are read before there is a key. */
const CLEAR_KEYS: ReadonlySet<string> = new Set(['format', KEY_KEY, SEAL_KEY]);

export class ValueCipher {
  readonly #secret: Uint8Array;

  /** @param secret 32 bytes; kept, not copied. */
  constructor(secret: Uint8Array) {
    assert(secret.length === SECRET_BYTES, `A key has ${secret.length} bytes, wanted ${SECRET_BYTES}`);
    this.#secret = secret;
  }

  /**
   * Encrypts the parts in a row as one value, bound to `context`.
   *
   * @returns the stored value in parts; they belong to the caller.
   */
  encrypt(context: Buffer, parts: readonly Buffer[]): Buffer[] {
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv(ALGORITHM, this.#secret, nonce).setAAD(context);
    const stored = [nonce, ...parts.map((part) => cipher.update(part))];
    // In this mode the end brings no bytes, only the tag.
    cipher.final();
    return [...stored, cipher.getAuthTag()];
  }

  /** The plain value, which belongs to the caller; undefined where it is not what `encrypt` made with this key and context. */
  decrypt(context: Buffer, stored: Buffer): Buffer | undefined {
    if (stored.length < CIPHER_OVERHEAD_BYTES) return undefined;
    const end = stored.length - TAG_BYTES;
    const decipher = createDecipheriv(ALGORITHM, this.#secret, stored.subarray(0, NONCE_BYTES), {
      authTagLength: TAG_BYTES,
    });
    decipher.setAAD(context).setAuthTag(stored.subarray(end));
    const plain = decipher.update(stored.subarray(NONCE_BYTES, end));
    try {
      decipher.final();
      return plain;
    } catch {
      return undefined;
    }
  }

  /**
   * A name as it may stand in a record's key: it tells nothing to whoever does not have the secret, and is the same
   * each time. 64 characters.
   */
  hideName(name: string): string {
    return createHmac('sha256', this.#secret).update(`name\0${name}`).digest('hex');
  }
}

/**
 * The file with its values encrypted and decrypted on their way. Both may be used side by side; closing either
 * closes the file.
 *
 * @returns the file itself where there is no cipher.
 */
export function encryptedFile(file: LmdbFile, cipher: ValueCipher | undefined): LmdbFile {
  return cipher === undefined ? file : new EncryptedFile(file, cipher);
}

class EncryptedFile implements LmdbFile {
  readonly #next: LmdbFile;
  readonly #cipher: ValueCipher;

  constructor(next: LmdbFile, cipher: ValueCipher) {
    this.#next = next;
    this.#cipher = cipher;
  }

  get path(): string {
    return this.#next.path;
  }

  database(name: string): LmdbDatabaseView {
    return new EncryptedDatabase({
      next: this.#next.database(name),
      cipher: this.#cipher,
      name,
      path: this.path,
    });
  }

  transaction(body: () => void): void {
    this.#next.transaction(body);
  }

  sync(name: SyncName): Promise<void> {
    return this.#next.sync(name);
  }

  close(): Promise<void> {
    return this.#next.close();
  }
}

interface DatabaseParts {
  readonly next: LmdbDatabaseView;
  readonly cipher: ValueCipher;
  readonly name: string;
  readonly path: string;
}

/** Errors are those of the database below; besides, each read throws CorruptionError where the tag does not fit. */
class EncryptedDatabase implements LmdbDatabaseView {
  readonly #next: LmdbDatabaseView;
  readonly #cipher: ValueCipher;
  readonly #name: string;
  readonly #path: string;

  constructor(parts: DatabaseParts) {
    this.#next = parts.next;
    this.#cipher = parts.cipher;
    this.#name = parts.name;
    this.#path = parts.path;
  }

  get(key: Buffer | string): Buffer | undefined {
    const stored = this.#next.get(key);
    return stored === undefined ? undefined : this.#decrypt(Buffer.from(key), stored);
  }

  put(key: Buffer | string, ...parts: readonly Buffer[]): void {
    this.#next.put(key, ...this.#encrypt(Buffer.from(key), parts));
  }

  append(key: Buffer | string, ...parts: readonly Buffer[]): void {
    this.#next.append(key, ...this.#encrypt(Buffer.from(key), parts));
  }

  appendInPlace(key: Buffer | string, valueWithRoom: Buffer): void {
    this.append(key, valueWithRoom.subarray(0, -CHECKSUM_BYTES));
  }

  remove(key: Buffer | string): boolean {
    return this.#next.remove(key);
  }

  *range(range?: LmdbRange): Generator<LmdbEntry> {
    for (const { key, value } of this.#next.range(range)) yield { key, value: this.#decrypt(key, value) };
  }

  keys(): Generator<Buffer> {
    return this.#next.keys();
  }

  count(): number {
    return this.#next.count();
  }

  #isClear(key: Buffer): boolean {
    return this.#name === 'header' && CLEAR_KEYS.has(key.toString('latin1'));
  }

  #context(key: Buffer): Buffer {
    return Buffer.concat([Buffer.from(`${this.#name}\0`), key]);
  }

  #encrypt(key: Buffer, parts: readonly Buffer[]): readonly Buffer[] {
    return this.#isClear(key) ? parts : this.#cipher.encrypt(this.#context(key), parts);
  }

  #decrypt(key: Buffer, stored: Buffer): Buffer {
    if (this.#isClear(key)) return stored;
    const plain = this.#cipher.decrypt(this.#context(key), stored);
    if (plain !== undefined) return plain;
    throw new CorruptionError(
      `Value 0x${key.toString('hex')} in ${this.#name} of ${this.#path} is not what was encrypted there`,
      { where: `${this.#path} ${this.#name} 0x${key.toString('hex')}` },
    );
  }
}
