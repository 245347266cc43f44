/**
 * The frame of a medium: a tar archive in ustar form, so that `tar -tv` lists it and `tar -x` takes it apart.
 *
 * Headers are those of POSIX.1-1988 ("ustar"): 512 bytes, numbers in octal, a sum over the header. All our
 * names are short and all our entries below 8 GiB, so no extended headers are written; a reader skips those
 * that it meets. Pure: headers in, bytes out.
 */

import { assert, CorruptionError } from '../base/index.ts';

export const TAR_BLOCK_BYTES = 512;
/** Two blocks of zeroes end an archive. */
export const TAR_END_BYTES = 2 * TAR_BLOCK_BYTES;
/** The largest size that eleven octal digits say. */
export const TAR_ENTRY_BYTES_MAX = 8 ** 11 - 1;

export interface TarHeader {
  /** Up to 100 bytes of ASCII. */
  readonly name: string;
  readonly sizeBytes: number;
  /** Seconds since the Unix epoch. */
  readonly modifiedSeconds: number;
}

/** The bytes that fill the last block of an entry. */
export function paddingBytes(sizeBytes: number): number {
  return (TAR_BLOCK_BYTES - (sizeBytes % TAR_BLOCK_BYTES)) % TAR_BLOCK_BYTES;
}

/** What an entry takes on a medium: its header, its content and the filling. */
export function entryBytes(sizeBytes: number): number {
  return TAR_BLOCK_BYTES + sizeBytes + paddingBytes(sizeBytes);
}

export function encodeTarHeader(header: TarHeader): Buffer {
  const { name, sizeBytes, modifiedSeconds } = header;
  assert(Buffer.byteLength(name) <= 100, `The name ${name} does not fit a tar header`);
  assert(
    sizeBytes >= 0 && sizeBytes <= TAR_ENTRY_BYTES_MAX,
    `An entry of ${sizeBytes} bytes does not fit tar`,
  );
  const block = Buffer.alloc(TAR_BLOCK_BYTES);
  block.write(name, 0, 'latin1');
  block.write('0000600\0', 100, 'latin1');
  block.write('0000000\0', 108, 'latin1');
  block.write('0000000\0', 116, 'latin1');
  block.write(`${octal(sizeBytes, 11)}\0`, 124, 'latin1');
  block.write(`${octal(Math.max(0, modifiedSeconds), 11)}\0`, 136, 'latin1');
  block.write('0', 156, 'latin1');
  block.write('ustar\x0000', 257, 'latin1');
  block.write(`${octal(sumOf(block), 6)}\0 `, 148, 'latin1');
  return block;
}

function octal(value: number, digits: number): string {
  return Math.floor(value).toString(8).padStart(digits, '0').slice(-digits);
}

/** The sum of all bytes, those of the sum itself counted as spaces. */
function sumOf(block: Buffer): number {
  let sum = 0;
  for (const [index, byte] of block.entries()) sum += index >= 148 && index < 156 ? 0x20 : byte;
  return sum;
}

/**
 * @returns undefined for a block of zeroes, which ends an archive.
 * @throws {CorruptionError} where the block is no header.
 */
export function decodeTarHeader(
  block: Buffer,
  where: string,
): (TarHeader & { readonly isFile: boolean }) | undefined {
  if (block.every((byte) => byte === 0)) return undefined;
  const sum = number(block, 148, 8);
  if (sum !== sumOf(block)) {
    throw new CorruptionError(`${where} is damaged: a header has the sum ${sumOf(block)}, wanted ${sum}`, {
      where,
    });
  }
  const sizeBytes = number(block, 124, 12);
  if (!Number.isSafeInteger(sizeBytes)) {
    throw new CorruptionError(`${where} is damaged: a header has no size`, { where });
  }
  const type = block.toString('latin1', 156, 157);
  return {
    name: text(block, 0, 100),
    sizeBytes,
    modifiedSeconds: number(block, 136, 12),
    isFile: type === '0' || type === '\0',
  };
}

function text(block: Buffer, start: number, length: number): string {
  const field = block.toString('latin1', start, start + length);
  const end = field.indexOf('\0');
  return end === -1 ? field : field.slice(0, end);
}

/** An octal number; NaN, which equals no sum, where there is none. */
function number(block: Buffer, start: number, length: number): number {
  const digits = text(block, start, length).trim();
  return /^[0-7]+$/.test(digits) ? Number.parseInt(digits, 8) : Number.NaN;
}
