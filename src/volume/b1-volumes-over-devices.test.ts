/**
 * B1 of the examples (seeds/2, Fig. 2A): three volumes over three devices, the first of which carries four pieces of
 * them.
 *
 *     first device    A0 (64K at 128K)   B0 (64K at 256K)  B1 (32K at 32K)   C0 (96K at 384K)
 *     second device   A1 (128K at 64K)
 *     third device    A2 (32K at 96K)    C1 (64K at 192K)
 *
 * Goal: a pattern over the whole of each volume reads back, written across every seam; bytes between the pieces never
 * change; a flush reaches every device that a volume has written to and no other. Method: real volumes over devices in
 * memory that are full of a pattern of their own before, and record what is asked of them; with a restart after each
 * step.
 */

import { join } from 'node:path';
import t, { type Test } from 'tap';
import { KIB } from '../base/index.ts';
import type { LayoutRequest } from './layout.ts';
import { Disks, type LaidOut, makeLaidOut, makeParent } from './layout.fixture.ts';

const DEVICE_BYTES = 512 * KIB;
const BETWEEN = 0x5b;

const PIECES = {
  a: ['mem:1@128K+64K', 'mem:2@64K+128K', 'mem:3@96K+32K'],
  b: ['mem:1@256K+64K', 'mem:1@32K+32K'],
  c: ['mem:1@384K+96K', 'mem:3@192K+64K'],
} as const;

const SIZES = { a: [64, 128, 32], b: [64, 32], c: [96, 64] } as const;

type Name = keyof typeof PIECES;
const NAMES: readonly Name[] = ['a', 'b', 'c'];

function layoutOfPieces(name: Name): LayoutRequest {
  return { extents: PIECES[name].map((place) => ({ kind: 'plain', members: [{ place }] })) };
}

function sizeOf(name: Name): number {
  return SIZES[name].reduce((sum, size) => sum + size * KIB, 0);
}

async function makeWorld(t: Test): Promise<{ readonly disks: Disks; readonly volumes: Map<Name, LaidOut> }> {
  const disks = new Disks();
  for (const name of ['1', '2', '3'])
    disks.add(name, DEVICE_BYTES).memory.write(Buffer.alloc(DEVICE_BYTES, BETWEEN), 0);
  const parent = await makeParent(t);
  const volumes = new Map<Name, LaidOut>();
  for (const name of NAMES) {
    const directory = join(parent, name);
    const laidOut = await makeLaidOut(t, {
      disks,
      layout: layoutOfPieces(name),
      sizeBytes: sizeOf(name),
      directory,
    });
    volumes.set(name, laidOut);
  }
  return { disks, volumes };
}

function pattern(name: Name, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  for (let at = 0; at < lengthBytes; at += 1) bytes[at] = (name.charCodeAt(0) * 3 + at * 7 + (at >> 9)) % 251;
  return bytes;
}

/** The bytes of a device that belong to no piece. */
function betweenPieces(disks: Disks, device: string): Buffer {
  const content = disks.get(device).content();
  const own: [number, number][] = [];
  for (const name of NAMES) {
    for (const place of PIECES[name]) {
      const [, on, from, length] = /^mem:(\d)@(\d+)K\+(\d+)K$/.exec(place) ?? [];
      if (on === device) own.push([Number(from) * KIB, Number(length) * KIB]);
    }
  }
  const parts: Buffer[] = [];
  let at = 0;
  for (const [from, length] of own.toSorted(([a], [b]) => a - b)) {
    parts.push(content.subarray(at, from));
    at = from + length;
  }
  return Buffer.concat([...parts, content.subarray(at)]);
}

function flushedDevices(disks: Disks): string[] {
  return ['1', '2', '3'].filter((name) =>
    disks.get(name).faulty.operations.some(({ kind }) => kind === 'flush'),
  );
}

t.test('B1: three volumes over three devices', async (t) => {
  const { disks, volumes } = await makeWorld(t);
  const models = new Map<Name, Buffer>();
  const restart = async (): Promise<void> => {
    for (const laidOut of volumes.values()) await laidOut.reopen();
  };
  const volumeOf = (name: Name): LaidOut => {
    const laidOut = volumes.get(name);
    if (laidOut === undefined) throw new Error(`No volume ${name}`);
    return laidOut;
  };
  const assertContents = async (what: string): Promise<void> => {
    for (const [name, model] of models) {
      const found = Buffer.alloc(model.length);
      await volumeOf(name).volume.read(found, 0);
      t.ok(found.equals(model), `${what}: volume ${name} reads back`);
    }
    for (const device of ['1', '2', '3'])
      t.ok(
        betweenPieces(disks, device).every((byte) => byte === BETWEEN),
        `${what}: nothing beside on ${device}`,
      );
  };

  // A pattern over the whole of each.
  for (const name of NAMES) {
    const model = pattern(name, sizeOf(name));
    models.set(name, model);
    await volumeOf(name).volume.write(model, 0);
  }
  await assertContents('a pattern over the whole');
  await restart();
  await assertContents('after a restart');

  // A write across every seam.
  for (const name of NAMES) {
    let seam = 0;
    for (const size of SIZES[name].slice(0, -1)) {
      seam += size * KIB;
      const source = Buffer.alloc(6 * KIB, 0xc0 + (seam % 16));
      await volumeOf(name).volume.write(source, seam - 3 * KIB);
      source.copy(models.get(name) ?? source, seam - 3 * KIB);
    }
  }
  await assertContents('writes across the seams');
  await restart();
  await assertContents('after another restart');

  // Zeroes and a trim across a seam.
  await volumeOf('a').volume.writeZeroes(62 * KIB, 4 * KIB);
  models.get('a')?.fill(0, 62 * KIB, 66 * KIB);
  await volumeOf('b').volume.trim(60 * KIB, 8 * KIB);
  models.get('b')?.fill(0, 60 * KIB, 68 * KIB);
  await assertContents('zeroes and a trim');
});

t.test('B1: a flush reaches every device that a volume has written to and no other', async (t) => {
  const { disks, volumes } = await makeWorld(t);
  // What was written before a volume was opened is not known: the first flush reaches all of its devices.
  for (const { volume } of volumes.values()) await volume.flush();
  const flushed = async (name: Name, atBytes: number): Promise<string[]> => {
    for (const device of ['1', '2', '3']) disks.get(device).faulty.forgetOperations();
    await volumes.get(name)?.volume.write(Buffer.alloc(4 * KIB, 1), atBytes);
    await volumes.get(name)?.volume.flush();
    return flushedDevices(disks);
  };
  t.strictSame(await flushed('a', 0), ['1']);
  t.strictSame(await flushed('a', 100 * KIB), ['2']);
  t.strictSame(await flushed('a', 190 * KIB), ['2', '3']);
  t.strictSame(await flushed('b', 62 * KIB), ['1']);
  t.strictSame(await flushed('c', 0), ['1']);
  t.strictSame(await flushed('c', 100 * KIB), ['3']);
});

t.test('B1: pieces of two volumes that have bytes in common are refused', async (t) => {
  const { disks } = await makeWorld(t);
  const directory = join(await makeParent(t), 'd');
  const layout: LayoutRequest = { extents: [{ kind: 'plain', members: [{ place: 'mem:1@160K+64K' }] }] };
  await t.rejects(makeLaidOut(t, { disks, layout, sizeBytes: 64 * KIB, directory }), { code: 'busy' });
});
