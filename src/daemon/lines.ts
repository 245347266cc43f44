/**
 * Cuts a stream of bytes into lines, of bounded length.
 *
 * Bytes are kept as they come until a newline ends the line: a character may be cut anywhere by the
 * socket, a line is decoded as a whole. Carriage returns are left to the JSON parser, which skips them.
 */

/** Feed it chunks; it hands out lines without their newline. */
export class LineSplitter {
  readonly #lengthBytesMax: number;
  #parts: Buffer[] = [];
  #lengthBytes = 0;

  constructor(lengthBytesMax: number) {
    this.#lengthBytesMax = lengthBytesMax;
  }

  /** Bytes of the line that has begun and not ended. */
  get pendingBytes(): number {
    return this.#lengthBytes;
  }

  /**
   * The lines that end in this chunk. `overflow` is true once a line is longer than the limit: nothing
   * after it can be trusted to begin at a line's start, so the caller gives the stream up.
   */
  push(chunk: Buffer): { readonly lines: readonly string[]; readonly overflow: boolean } {
    const lines: string[] = [];
    let start = 0;
    for (;;) {
      const end = chunk.indexOf(0x0a, start);
      const stop = end === -1 ? chunk.length : end;
      if (this.#lengthBytes + (stop - start) > this.#lengthBytesMax) return { lines, overflow: true };
      if (end === -1) break;
      lines.push(this.#finish(chunk.subarray(start, end)));
      start = end + 1;
    }
    if (start < chunk.length) {
      this.#parts.push(Buffer.from(chunk.subarray(start)));
      this.#lengthBytes += chunk.length - start;
    }
    return { lines, overflow: false };
  }

  #finish(last: Buffer): string {
    const line = Buffer.concat([...this.#parts, last]).toString('utf8');
    this.#parts = [];
    this.#lengthBytes = 0;
    return line;
  }
}
