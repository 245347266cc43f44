/**
 * Where a medium is read from: a file, a pipe, a tape or another device, or an open descriptor. Front to back,
 * once; no seeking anywhere.
 *
 * Reads ask for more than a tape's block, since a tape refuses to give part of one.
 */

import { type FileHandle, open } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { systemCode } from '../base/index.ts';
import { mediumError } from './errors.ts';

export interface MediumInput {
  /** For messages. */
  readonly place: string;
  /** Reads into the target as much as there is at once. @returns the bytes; 0 at the end. @throws {MediaError} `io`. */
  read(target: Buffer): Promise<number>;
  /** Never throws. */
  close(): Promise<void>;
}

/** The part of a file handle that an input needs, so that a descriptor of the process can stand for one. */
export interface ReadableFile {
  read(buffer: Buffer, offset: number, length: number, position: null): Promise<{ bytesRead: number }>;
  close(): Promise<void>;
}

const WAIT_MS = 5;
/** Several blocks of any tape. */
const CHUNK_BYTES = 1024 * 1024;

/** Opens `place` for reading; opening a pipe waits for its writer. @throws {MediaError} `io`. */
export async function openMediumInput(place: string): Promise<MediumInput> {
  let handle: FileHandle;
  try {
    handle = await open(place, 'r');
  } catch (error) {
    throw mediumError(error, 'Opening', place);
  }
  return descriptorInput(place, handle);
}

/** Reads from what is open already, such as standard input; `close` closes it. */
export function descriptorInput(place: string, file: ReadableFile): MediumInput {
  return {
    place,
    read: async (target) => {
      for (;;) {
        try {
          return (await file.read(target, 0, target.length, null)).bytesRead;
        } catch (error) {
          // A pipe that another process made non-blocking asks for patience.
          if (systemCode(error) !== 'EAGAIN') throw mediumError(error, 'Reading', place);
          await delay(WAIT_MS);
        }
      }
    },
    close: async () => {
      try {
        await file.close();
      } catch {
        // All that was wanted has been read.
      }
    },
  };
}

/** Bytes of an input in pieces of the wanted length. */
export class ByteStream {
  readonly #input: MediumInput;
  readonly #chunk = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  #start = 0;
  #end = 0;
  #readBytes = 0;

  constructor(input: MediumInput) {
    this.#input = input;
  }

  /** Bytes handed out or skipped so far. */
  get readBytes(): number {
    return this.#readBytes;
  }

  /** The next bytes, a buffer of the caller's own; undefined where the input ends before. */
  async take(lengthBytes: number): Promise<Buffer | undefined> {
    const taken = Buffer.allocUnsafe(lengthBytes);
    for (let at = 0; at < lengthBytes;) {
      if (!(await this.#fill())) return undefined;
      const copied = this.#chunk.copy(taken, at, this.#start, this.#end);
      at += copied;
      this.#start += copied;
    }
    this.#readBytes += lengthBytes;
    return taken;
  }

  /** @returns whether there were so many bytes. */
  async skip(lengthBytes: number): Promise<boolean> {
    for (let left = lengthBytes; left > 0;) {
      if (!(await this.#fill())) return false;
      const skipped = Math.min(left, this.#end - this.#start);
      this.#start += skipped;
      left -= skipped;
    }
    this.#readBytes += lengthBytes;
    return true;
  }

  async #fill(): Promise<boolean> {
    if (this.#start < this.#end) return true;
    this.#start = 0;
    this.#end = await this.#input.read(this.#chunk);
    return this.#end > 0;
  }
}
