/**
 * Mutations of byte streams, for the fuzzer: what a broken or hostile peer, or a line that drops and repeats,
 * could make of a recorded stream.
 *
 * Everything is drawn from one seeded generator, so that a seed is a run.
 */

import { type SeededRandom } from '../base/index.ts';

const INTERESTING_BYTES = [0, 1, 2, 3, 7, 8, 10, 11, 0x20, 0x7f, 0x80, 0xfe, 0xff] as const;
/** Lengths and offsets at which arithmetic turns wrong. */
const INTERESTING_WORDS = [
  0, 1, 2, 255, 256, 511, 512, 513, 4095, 4096, 4097, 0xffff, 0x1_0000, 0xf_fe00, 0xf_ffff, 0x10_0000,
  0x10_0200, 0x1ff_ffff, 0x200_0000, 0x200_0001, 0x400_0000, 0x7fff_ffff, 0x8000_0000, 0x8000_0003,
  0xffff_fe00, 0xffff_ffff,
] as const;
/** The magic numbers before the fields that decide most: a request's, both kinds, an option's, and the replies'. */
const MAGICS = [
  Buffer.from('25609513', 'hex'),
  Buffer.from('21e41c71', 'hex'),
  Buffer.from('49484156454f5054', 'hex'),
  Buffer.from('67446698', 'hex'),
  Buffer.from('668e33ef', 'hex'),
  Buffer.from('6e8a278c', 'hex'),
  Buffer.from('0003e889045565a9', 'hex'),
] as const;
/** The header behind any magic is no longer. */
const HEADER_BYTES_MAX = 32;
/** What a mutation inserts or repeats at most: streams must stay quick to run. */
const RANGE_BYTES_MAX = 8192;
const STREAM_BYTES_MAX = 256 * 1024;

type Mutation = (random: SeededRandom, bytes: Buffer, other: Buffer) => Buffer;

const MUTATIONS: readonly Mutation[] = [
  flipBit,
  setByte,
  setWord,
  setField,
  setField,
  setField,
  setSmallField,
  setSmallField,
  dropRange,
  repeatRange,
  swapRanges,
  insertNoise,
  splice,
  splice,
];

/** Between none (one run in sixteen: what is right must stay right) and a handful of mutations. */
export function mutate(random: SeededRandom, original: Buffer, other: Buffer): Buffer {
  if (random.chance(1 / 16)) return original;
  let bytes: Buffer = Buffer.from(original);
  for (let count = 1 + random.below(random.pick([1, 1, 2, 4, 8])); count > 0; count -= 1) {
    bytes = random.pick(MUTATIONS)(random, bytes, other).subarray(0, STREAM_BYTES_MAX);
  }
  // A peer that goes away in the middle is the most common fault of all.
  return random.chance(1 / 4) ? bytes.subarray(0, random.below(bytes.length + 1)) : bytes;
}

/** Cuts a stream into the pieces it arrives in: one, single bytes at the start, or anything between. */
export function cutIntoChunks(random: SeededRandom, bytes: Buffer): Buffer[] {
  const lengthMax = random.pick([1, 7, 28, 100, 4096, 65_536, STREAM_BYTES_MAX]);
  const chunks: Buffer[] = [];
  for (let at = 0; at < bytes.length;) {
    // Single bytes for a while, then longer ones: a long stream must not take a thousand turns.
    const growth = chunks.length < 64 ? 1 : 64;
    const end = at + 1 + random.below(lengthMax * growth);
    // A chunk is its receiver's: it must not share memory with what others are given.
    chunks.push(Buffer.from(bytes.subarray(at, end)));
    at = end;
  }
  return chunks;
}

function flipBit(random: SeededRandom, bytes: Buffer): Buffer {
  if (bytes.length === 0) return bytes;
  const at = random.below(bytes.length);
  bytes.writeUInt8(bytes.readUInt8(at) ^ (1 << random.below(8)), at);
  return bytes;
}

function setByte(random: SeededRandom, bytes: Buffer): Buffer {
  if (bytes.length === 0) return bytes;
  bytes.writeUInt8(random.pick(INTERESTING_BYTES), random.below(bytes.length));
  return bytes;
}

function setWord(random: SeededRandom, bytes: Buffer): Buffer {
  if (bytes.length < 4) return bytes;
  bytes.writeUInt32BE(random.pick(INTERESTING_WORDS), random.below(bytes.length - 3));
  return bytes;
}

/** A byte near a magic number; -1 where there is none. */
function findField(random: SeededRandom, bytes: Buffer): number {
  const from = random.below(bytes.length + 1);
  const found = MAGICS.map((magic) => {
    const behind = bytes.indexOf(magic, from);
    return behind >= 0 ? behind : bytes.indexOf(magic);
  }).filter((at) => at >= 0);
  return found.length === 0 ? -1 : random.pick(found);
}

/** An aligned word of a header: its length, offset, cookie or type. */
function setField(random: SeededRandom, bytes: Buffer): Buffer {
  const header = findField(random, bytes);
  const at = header + 4 * random.below(HEADER_BYTES_MAX / 4);
  if (header < 0 || at + 4 > bytes.length) return bytes;
  bytes.writeUInt32BE(random.pick(INTERESTING_WORDS), at);
  return bytes;
}

/** One of the two halves of a word: flags, a command's type, the type of a chunk. */
function setSmallField(random: SeededRandom, bytes: Buffer): Buffer {
  const header = findField(random, bytes);
  const at = header + 2 * random.below(HEADER_BYTES_MAX / 2);
  if (header < 0 || at + 2 > bytes.length) return bytes;
  const value = random.chance(3 / 4)
    ? random.below(48)
    : random.pick([0x7fff, 0x8000, 0x8001, 0x8002, 0xffff]);
  bytes.writeUInt16BE(value, at);
  return bytes;
}

/** A range of a stream, never longer than is quick to run. */
function drawRange(random: SeededRandom, bytes: Buffer): [from: number, to: number] {
  const from = random.below(bytes.length + 1);
  const lengthBytes = random.below(random.pick([4, 32, 600, RANGE_BYTES_MAX]));
  return [from, Math.min(bytes.length, from + lengthBytes)];
}

function dropRange(random: SeededRandom, bytes: Buffer): Buffer {
  const [from, to] = drawRange(random, bytes);
  return Buffer.concat([bytes.subarray(0, from), bytes.subarray(to)]);
}

function repeatRange(random: SeededRandom, bytes: Buffer): Buffer {
  const [from, to] = drawRange(random, bytes);
  const times = random.pick([1, 1, 2, 16]);
  const range = bytes.subarray(from, to);
  return Buffer.concat([
    bytes.subarray(0, to),
    ...Array.from({ length: times }, () => range),
    bytes.subarray(to),
  ]);
}

function swapRanges(random: SeededRandom, bytes: Buffer): Buffer {
  const [from, middle] = drawRange(random, bytes);
  const to = Math.min(bytes.length, middle + random.below(600));
  return Buffer.concat([
    bytes.subarray(0, from),
    bytes.subarray(middle, to),
    bytes.subarray(from, middle),
    bytes.subarray(to),
  ]);
}

function insertNoise(random: SeededRandom, bytes: Buffer): Buffer {
  const at = random.below(bytes.length + 1);
  const noise = Buffer.from(Array.from({ length: random.below(100) }, () => random.below(256)));
  return Buffer.concat([bytes.subarray(0, at), noise, bytes.subarray(at)]);
}

/** A part of another session, put in or going on instead of the rest. */
function splice(random: SeededRandom, bytes: Buffer, other: Buffer): Buffer {
  const at = random.below(bytes.length + 1);
  const [from, to] = drawRange(random, other);
  const rest = random.chance(1 / 2) ? bytes.subarray(at) : other.subarray(to);
  return Buffer.concat([bytes.subarray(0, at), other.subarray(from, to), rest]);
}
