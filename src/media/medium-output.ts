/**
 * Where a medium is written to: a new file, a pipe, a tape or another device, or an open descriptor.
 *
 * Bytes go out front to back in blocks of one size, since a tape keeps the size of each write; only what is
 * left at the end is shorter, filled up for a device. A file and its name are durable once `finish` returns;
 * a device is told to sync as far as it knows how to; a pipe takes no promise.
 */

import { constants } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { LIMITS, syncDirectory, syncFile, systemCode } from '../base/index.ts';
import { mediumError } from './errors.ts';

/** The medium is full; what was being written belongs on the next one. */
export class EndOfMedium extends Error {
  constructor(place: string, options?: { cause?: unknown }) {
    super(`Medium ${place} is full`, options);
  }
}

export interface MediumOutput {
  /** For messages. */
  readonly place: string;
  /** Bytes that the medium has taken; what was written beyond may be lost where it is full. */
  readonly takenBytes: number;
  /**
   * Takes the bytes of all parts in order; the buffers are the caller's again.
   *
   * @throws {EndOfMedium} where the medium is full. @throws {MediaError} `io`.
   */
  write(parts: readonly Buffer[]): Promise<void>;
  /** Writes what is left, makes it durable and closes. @throws as `write`. */
  finish(): Promise<void>;
  /** Closes without a promise about what is there. Never throws. */
  abandon(): Promise<void>;
}

/** What a descriptor leads to decides how it is written and ended. */
type Kind = 'file' | 'device' | 'pipe';

const WAIT_MS = 5;
const FILE_BLOCK_BYTES = 1024 * 1024;

/** The part of a file handle that an output needs, so that a descriptor of the process can stand for one. */
export interface WritableFile {
  readonly fd: number;
  write(buffer: Buffer, offset: number, length: number): Promise<{ bytesWritten: number }>;
  close(): Promise<void>;
}

/**
 * Opens `place` for writing: a file must be new, unless `overwrite`; opening a pipe waits for its reader.
 *
 * @throws {MediaError} `exists` or `io`.
 */
export async function openMediumOutput(
  place: string,
  options: { readonly overwrite?: boolean } = {},
): Promise<MediumOutput> {
  try {
    const found = await kindOf(place);
    const isNew = found === undefined || found === 'file';
    const create = constants.O_CREAT | (options.overwrite === true ? constants.O_TRUNC : constants.O_EXCL);
    const handle = await open(place, constants.O_WRONLY | (isNew ? create : 0), 0o600);
    return new FileOutput(place, handle, found ?? 'file');
  } catch (error) {
    throw mediumError(error, 'Opening', place);
  }
}

/** Writes to a descriptor that is open already, such as standard output; it is not closed. */
export function descriptorOutput(place: string, file: WritableFile): MediumOutput {
  return new FileOutput(place, file, 'pipe');
}

async function kindOf(place: string): Promise<Kind | undefined> {
  try {
    const found = await stat(place);
    if (found.isCharacterDevice() || found.isBlockDevice()) return 'device';
    return found.isFIFO() || found.isSocket() ? 'pipe' : 'file';
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

class FileOutput implements MediumOutput {
  readonly place: string;
  readonly #file: WritableFile | FileHandle;
  readonly #kind: Kind;
  readonly #block: Buffer;
  #filledBytes = 0;
  #takenBytes = 0;
  #isClosed = false;

  constructor(place: string, file: WritableFile | FileHandle, kind: Kind) {
    this.place = place;
    this.#file = file;
    this.#kind = kind;
    this.#block = Buffer.allocUnsafeSlow(kind === 'device' ? LIMITS.mediaBlockBytes : FILE_BLOCK_BYTES);
  }

  get takenBytes(): number {
    return this.#takenBytes;
  }

  async write(parts: readonly Buffer[]): Promise<void> {
    for (const part of parts) {
      for (let at = 0; at < part.length;) {
        const copied = part.copy(this.#block, this.#filledBytes, at);
        at += copied;
        this.#filledBytes += copied;
        if (this.#filledBytes === this.#block.length) await this.#writeBlock();
      }
    }
  }

  async #writeBlock(): Promise<void> {
    const length = this.#filledBytes;
    for (let at = 0; at < length;) {
      try {
        const { bytesWritten } = await this.#file.write(this.#block, at, length - at);
        at += bytesWritten;
        if (bytesWritten === 0) throw new EndOfMedium(this.place);
      } catch (error) {
        await this.#waitOrThrow(error);
      }
    }
    this.#takenBytes += length;
    this.#filledBytes = 0;
  }

  /** A pipe that another process made non-blocking asks for patience. */
  async #waitOrThrow(error: unknown): Promise<void> {
    const code = systemCode(error);
    if (code === 'EAGAIN') {
      await delay(WAIT_MS);
      return;
    }
    if (code === 'ENOSPC' && this.#kind === 'device') throw new EndOfMedium(this.place, { cause: error });
    throw mediumError(error, 'Writing', this.place);
  }

  async finish(): Promise<void> {
    if (this.#kind === 'device' && this.#filledBytes > 0) {
      this.#block.fill(0, this.#filledBytes);
      this.#filledBytes = this.#block.length;
    }
    if (this.#filledBytes > 0) await this.#writeBlock();
    try {
      if (this.#kind === 'file') await syncFile('medium', this.#file.fd, this.place);
      if (this.#kind === 'device') await this.#syncDevice();
      await this.#close();
      if (this.#kind === 'file') await syncDirectory('medium', dirname(this.place));
    } catch (error) {
      throw mediumError(error, 'Ending', this.place);
    }
  }

  /** A tape does not know fdatasync: closing it writes what it holds. */
  async #syncDevice(): Promise<void> {
    try {
      await syncFile('medium', this.#file.fd, this.place);
    } catch (error) {
      if (systemCode(error) !== 'EINVAL') throw error;
    }
  }

  async #close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.#file.close();
  }

  async abandon(): Promise<void> {
    try {
      await this.#close();
    } catch {
      // What is there was given up already, and the reason is on its way to the caller.
    }
  }
}
