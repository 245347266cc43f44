/**
 * What every device must do, as a suite that any adapter runs against itself.
 *
 * Goal: a layer may be put on any device that passes, without knowing which. Method: a fresh device for each
 * case, its content compared with a plain buffer that takes the same changes; offsets are chosen to cross and to
 * miss the boundaries adapters are built on (512 bytes, 4 KiB, 64 KiB, 1 MiB). What a device declares it lacks
 * is not tried.
 *
 * Tests only. Lives here, and not in a test file, because adapters in other rooms run it too.
 */

import type { Test } from 'tap';
import { AssertionError, KIB, MIB, SeededRandom, systemCode } from '../base/index.ts';
import type { BlockDevice } from './block-device.ts';

export interface ConformanceOptions {
  /** Size of the devices; at least 4 MiB, a multiple of 1 MiB. */
  readonly sizeBytes?: number;
  /** Seed of the random case; printed. */
  readonly seed?: number;
}

/** Makes a device of that size that reads as zeroes; the suite closes it. */
export type MakeDevice = (sizeBytes: number) => Promise<BlockDevice>;

type Case = (t: Test, device: BlockDevice) => Promise<void>;

/** Runs the suite as subtests of `t`. */
export async function conformance(
  t: Test,
  makeDevice: MakeDevice,
  options: ConformanceOptions = {},
): Promise<void> {
  const sizeBytes = options.sizeBytes ?? 4 * MIB;
  const cases: Readonly<Record<string, Case>> = {
    'a new device is a whole number of blocks and reads as zeroes': freshDevice,
    'what was written reads back, whatever its size and place': readBack,
    'overlapping writes replace exactly what they cover': overlaps,
    'zeroed ranges read as zeroes and their neighbours stay': zeroes,
    'trimmed ranges read as zeroes and their neighbours stay': trims,
    'fast zeroes are zeroes, or refused and nothing happened': fastZeroes,
    'extents cover the range in order, and only zero bytes are called zero': extents,
    'flush and fua finish': flushes,
    'large requests in flight together do not mix': concurrentLarge,
    'random requests agree with a plain buffer': (test, device) => randomly(test, device, options.seed ?? 1),
    'ranges outside, empty or not in blocks are programmer errors': assertions,
    'a buffer is left alone beside the range': leavesBufferAlone,
  };
  for (const [name, run] of Object.entries(cases)) {
    await t.test(name, async (test) => {
      const device = await makeDevice(sizeBytes);
      try {
        await run(test, device);
      } finally {
        await device.close();
      }
    });
  }
}

async function contentOf(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(device.sizeBytes, 0xee);
  await device.read(content, 0);
  return content;
}

/** Compares without printing megabytes. */
function same(t: Test, found: Buffer, wanted: Buffer, what: string): void {
  if (found.equals(wanted)) {
    t.pass(what);
    return;
  }
  const at = found.findIndex((byte, index) => byte !== wanted[index]);
  t.fail(`${what}: first difference at byte ${at}, found ${found[at]}, wanted ${wanted[at]}`);
}

/** Bytes that differ by place and by `salt`, and are never zero. */
function pattern(lengthBytes: number, salt: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  for (let index = 0; index < lengthBytes; index += 1) bytes[index] = 1 + ((index * 7 + salt * 31) % 255);
  return bytes;
}

/** Places and lengths around the boundaries of blocks, pages, chunks and large requests. */
function* ranges(device: BlockDevice): Generator<readonly [number, number]> {
  const block = device.blockSizeBytes;
  for (const boundary of [block, 4 * KIB, 64 * KIB, MIB, 2 * MIB]) {
    if (boundary % block !== 0) continue;
    yield [boundary - block, block];
    yield [boundary, block];
    yield [boundary - block, 2 * block];
    if (boundary <= MIB) yield [boundary, boundary];
    if (boundary <= MIB) yield [boundary - block, boundary + 2 * block];
  }
  yield [device.sizeBytes - block, block];
  yield [0, device.sizeBytes];
}

async function freshDevice(t: Test, device: BlockDevice): Promise<void> {
  t.ok(device.blockSizeBytes >= 512 && Number.isInteger(Math.log2(device.blockSizeBytes)));
  t.equal(device.sizeBytes % device.blockSizeBytes, 0);
  t.ok(device.description.length > 0);
  same(t, await contentOf(device), Buffer.alloc(device.sizeBytes), 'zeroes');
}

async function readBack(t: Test, device: BlockDevice): Promise<void> {
  let salt = 0;
  for (const [offset, length] of ranges(device)) {
    salt += 1;
    const source = pattern(length, salt);
    const kept = Buffer.from(source);
    await device.write(source, offset);
    same(t, source, kept, `source of ${length} at ${offset} is untouched`);
    const target = Buffer.alloc(length);
    await device.read(target, offset);
    same(t, target, source, `${length} at ${offset}`);
  }
}

async function overlaps(t: Test, device: BlockDevice): Promise<void> {
  const model = Buffer.alloc(device.sizeBytes);
  let salt = 100;
  for (const [offset, length] of [...ranges(device)].toReversed()) {
    salt += 1;
    const source = pattern(length, salt);
    source.copy(model, offset);
    await device.write(source, offset);
  }
  same(t, await contentOf(device), model, 'the whole device');
}

async function zeroes(t: Test, device: BlockDevice): Promise<void> {
  for (const mayTrim of [true, false]) {
    await clearing(t, device, (offset, length) => device.writeZeroes(offset, length, { mayTrim }));
  }
}

async function trims(t: Test, device: BlockDevice): Promise<void> {
  if (!device.capabilities.trim) {
    t.comment(`${device.description} has no trim`);
    return;
  }
  await clearing(t, device, (offset, length) => device.trim(offset, length));
}

async function clearing(
  t: Test,
  device: BlockDevice,
  clear: (offset: number, length: number) => void | Promise<void>,
): Promise<void> {
  const model = pattern(device.sizeBytes, 3);
  await device.write(model, 0);
  for (const [offset, length] of ranges(device)) {
    if (length === device.sizeBytes) continue;
    await clear(offset, length);
    model.fill(0, offset, offset + length);
    const target = Buffer.alloc(length, 0xee);
    await device.read(target, offset);
    same(t, target, Buffer.alloc(length), `${length} at ${offset} reads as zeroes`);
  }
  same(t, await contentOf(device), model, 'the whole device');
  await clear(0, device.sizeBytes);
  same(t, await contentOf(device), Buffer.alloc(device.sizeBytes), 'everything cleared');
}

async function fastZeroes(t: Test, device: BlockDevice): Promise<void> {
  const fast = { fast: true, mayTrim: true } as const;
  const keeping = { fast: true, mayTrim: false } as const;
  await t.rejects(async () => device.writeZeroes(0, device.blockSizeBytes, keeping), AssertionError);
  if (device.capabilities.fastZero !== true) {
    await t.rejects(async () => device.writeZeroes(0, device.blockSizeBytes, fast), AssertionError);
    return;
  }
  const model = pattern(device.sizeBytes, 4);
  await device.write(model, 0);
  for (const [offset, length] of ranges(device)) {
    try {
      await device.writeZeroes(offset, length, fast);
      model.fill(0, offset, offset + length);
    } catch (error) {
      t.equal(systemCode(error), 'not-fast', `${length} at ${offset} is refused`);
    }
    same(t, await contentOf(device), model, `the whole device after ${length} at ${offset}`);
  }
}

async function extents(t: Test, device: BlockDevice): Promise<void> {
  await device.write(pattern(MIB, 5), MIB);
  await device.write(pattern(device.blockSizeBytes, 6), 3 * MIB + device.blockSizeBytes);
  await device.writeZeroes(MIB + 256 * KIB, 256 * KIB);
  const content = await contentOf(device);
  const block = device.blockSizeBytes;
  for (const [offset, length] of [
    [0, device.sizeBytes],
    [MIB, MIB],
    [MIB + 256 * KIB + block, block],
    [device.sizeBytes - block, block],
  ] as const) {
    let at = offset;
    for (const extent of await device.extents(offset, length)) {
      t.equal(extent.offsetBytes, at, 'no gap and no overlap');
      t.ok(extent.lengthBytes > 0);
      at += extent.lengthBytes;
      const part = content.subarray(extent.offsetBytes, at);
      if (extent.zero) same(t, part, Buffer.alloc(part.length), 'zero bytes are zero');
      else t.equal(extent.hole, false, 'a hole reads as zeroes in Cowbell');
    }
    t.equal(at, offset + length, 'covers the range and no more');
  }
  if (!device.capabilities.extents) {
    const kinds = await device.extents(0, device.sizeBytes);
    t.ok(
      kinds.every((extent) => !extent.hole && !extent.zero),
      'everything is data',
    );
  }
}

async function flushes(t: Test, device: BlockDevice): Promise<void> {
  await device.flush();
  const block = device.blockSizeBytes;
  await device.write(pattern(block, 1), 0, { fua: true });
  await device.write(pattern(MIB, 2), MIB, { fua: true });
  await device.writeZeroes(MIB, block, { fua: true });
  if (device.capabilities.trim) await device.trim(MIB + block, block, { fua: true });
  await Promise.all([device.flush(), device.flush(), device.flush()]);
  const target = Buffer.alloc(block);
  await device.read(target, 0);
  same(t, target, pattern(block, 1), 'content after the flush');
}

async function concurrentLarge(t: Test, device: BlockDevice): Promise<void> {
  const piece = device.sizeBytes / 16;
  const sources = Array.from({ length: 16 }, (_, index) => pattern(piece, index));
  await Promise.all(sources.map(async (source, index) => device.write(source, index * piece)));
  const targets = sources.map(() => Buffer.alloc(piece));
  await Promise.all([
    ...targets.map(async (target, index) => device.read(target, index * piece)),
    device.flush(),
  ]);
  for (const [index, target] of targets.entries())
    same(t, target, sources[index] ?? target, `piece ${index}`);
}

async function randomly(t: Test, device: BlockDevice, seed: number): Promise<void> {
  t.comment(`seed ${seed}`);
  const random = new SeededRandom(seed);
  const model = Buffer.alloc(device.sizeBytes);
  const blocks = device.sizeBytes / device.blockSizeBytes;
  for (let step = 0; step < 200; step += 1) {
    const first = random.below(blocks);
    const longest = Math.min(blocks - first, random.chance(0.2) ? blocks : 64);
    const offset = first * device.blockSizeBytes;
    const length = (1 + random.below(longest)) * device.blockSizeBytes;
    const choice = random.below(4);
    if (choice === 0) {
      await device.writeZeroes(offset, length, { mayTrim: random.chance(0.5) });
      model.fill(0, offset, offset + length);
    } else if (choice === 1 && device.capabilities.trim) {
      await device.trim(offset, length);
      model.fill(0, offset, offset + length);
    } else if (choice === 2) {
      const target = Buffer.alloc(length);
      await device.read(target, offset);
      if (!target.equals(model.subarray(offset, offset + length))) t.fail(`step ${step} reads wrong bytes`);
    } else {
      const source = pattern(length, step);
      await device.write(source, offset);
      source.copy(model, offset);
    }
  }
  same(t, await contentOf(device), model, 'the whole device');
}

async function assertions(t: Test, device: BlockDevice): Promise<void> {
  const { blockSizeBytes: block, sizeBytes: size } = device;
  const wrong = [
    [-block, block],
    [size, block],
    [size - block, 2 * block],
    [0, block / 2],
    [block / 2, block],
    [0, 0],
    [Number.NaN, block],
    [0.5, block],
  ] as const;
  for (const [offset, length] of wrong) {
    const attempts = [
      () => device.read(Buffer.alloc(length), offset),
      () => device.write(Buffer.alloc(length), offset),
      () => device.writeZeroes(offset, length),
      () => device.extents(offset, length),
      ...(device.capabilities.trim ? [() => device.trim(offset, length)] : []),
    ];
    for (const attempt of attempts) {
      await t.rejects(async () => attempt(), AssertionError, `${length} at ${offset}`);
    }
  }
}

async function leavesBufferAlone(t: Test, device: BlockDevice): Promise<void> {
  for (const length of [device.blockSizeBytes, MIB]) {
    const around = Buffer.alloc(length + 2048, 0x5a);
    await device.write(pattern(length, 9), 0);
    await device.read(around.subarray(1000, 1000 + length), 0);
    same(t, around.subarray(1000, 1000 + length), pattern(length, 9), 'the range');
    same(t, around.subarray(0, 1000), Buffer.alloc(1000, 0x5a), 'before it');
    same(t, around.subarray(1000 + length), Buffer.alloc(1048, 0x5a), 'after it');
  }
}
