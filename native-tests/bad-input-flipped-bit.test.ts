/**
 * Goal: a flipped bit in a set is found wherever it matters: `store verify` ends with status 3 and names set and
 * tracks, `restore` does so too and leaves not one wrong byte of them on its target.
 *
 * Method: bytes flipped in the middle and at random places of a set's file, with and without compression; the
 * target is filled beforehand, so each of its tracks must be as before or as the volume was. The seed is
 * printed; COWBELL_SEED repeats it.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  copyFileSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { SeededRandom } from '../src/base/index.ts';
import { cowbell, mustCowbell, temporaryDirectory } from './support/process.ts';
import { backUp, eventsOf } from './support/served.ts';

const MIB = 1_048_576;
const SIZE_BYTES = 8 * MIB;
const TRACK_BYTES = 65_536;
const BEFORE = Buffer.alloc(SIZE_BYTES, 0x55);
const RANDOM_FLIPS = 4;

function flipBit(path: string, offset: number, bit: number): void {
  const descriptor = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  readSync(descriptor, byte, 0, 1, offset);
  byte[0] = (byte[0] ?? 0) ^ (1 << bit);
  writeSync(descriptor, byte, 0, 1, offset);
  closeSync(descriptor);
}

/** Half of every track is random, so that zstd makes frames smaller. */
function makeContent(): Buffer {
  const content = randomBytes(SIZE_BYTES);
  for (let offset = 0; offset < SIZE_BYTES; offset += 2 * 4096) content.fill(0x20, offset, offset + 4096);
  return content;
}

/** The tracks of `restored` that are as they were before the restore; throws for one that is neither. */
function untouchedTracks(restored: Buffer, content: Buffer): readonly number[] {
  const untouched: number[] = [];
  for (let track = 0; track * TRACK_BYTES < SIZE_BYTES; track += 1) {
    const part = (image: Buffer): Buffer => image.subarray(track * TRACK_BYTES, (track + 1) * TRACK_BYTES);
    if (part(restored).equals(part(content))) continue;
    if (!part(restored).equals(part(BEFORE))) throw new Error(`Track ${track} of the target is wrong`);
    untouched.push(track);
  }
  return untouched;
}

for (const codec of ['none', 'zstd']) {
  t.test(`frames stored with ${codec}`, async (t) => {
    const seed = Number(process.env['COWBELL_SEED'] ?? Math.floor(Math.random() * 2 ** 32));
    t.comment(`COWBELL_SEED=${seed}`);
    const random = new SeededRandom(seed);
    const directory = temporaryDirectory(t);
    const at = (name: string): string => join(directory, name);
    const content = makeContent();
    writeFileSync(at('home.raw'), content);
    await mustCowbell([
      'volume',
      'create',
      at('vol'),
      '--size',
      String(SIZE_BYTES),
      '--home',
      at('home.raw'),
    ]);
    await mustCowbell(['store', 'init', at('store')]);
    const set = String((await backUp(at('vol'), at('store'), ['--codec', codec]))['set']);
    const name = readdirSync(at('store/sets')).find((file) => file.endsWith('-0.cbs')) ?? '';
    const file = join(at('store/sets'), name);
    const size = statSync(file).size;
    copyFileSync(file, at('kept.cbs'));

    const judge = async (offset: number): Promise<void> => {
      copyFileSync(at('kept.cbs'), file);
      flipBit(file, offset, random.below(8));
      const verified = await cowbell(['store', 'verify', at('store'), '--json']);
      writeFileSync(at('out.raw'), BEFORE);
      const restored = await cowbell(['restore', at('store'), set, at('out.raw')]);
      const untouched = untouchedTracks(readFileSync(at('out.raw')), content);
      const where = `byte ${offset} of ${size}: ${verified.stderr}${restored.stderr}`;
      if (verified.status === 0) {
        t.equal(restored.status, 0, where);
        t.same(untouched, [], 'a byte that means nothing changes nothing');
        return;
      }
      t.equal(verified.status, 3, where);
      t.match(verified.stderr, new RegExp(`^cowbell: Set ${set} is damaged[^\n]*\n$`, 'm'));
      t.equal(restored.status, 3, where);
      t.match(restored.stderr, new RegExp(`^cowbell: [^\n]*${set}[^\n]*\n$`, 'm'));
      const damaged = eventsOf(verified.stdout).find((event) => event['event'] === 'verified');
      const tracks = Array.isArray(damaged?.['damagedTracks']) ? damaged['damagedTracks'].map(Number) : [];
      t.ok(
        tracks.every((track) => untouched.includes(track)),
        `tracks ${tracks.join(', ')} are not written`,
      );
      if (offset !== Math.floor(size / 2)) return;
      t.ok(tracks.length > 0, 'the middle of the file is content');
      t.match(verified.stderr, new RegExp(`Set ${set} is damaged in tracks? ${tracks[0]}\\b`));
      t.match(restored.stderr, new RegExp(`track ${tracks[0]}\\b`));
    };
    await judge(Math.floor(size / 2));
    for (let flip = 0; flip < RANDOM_FLIPS; flip += 1) {
      // Metadata is small: every other flip is in the last and first pages, where most of it is.
      const edge = Math.min(size, 65_536);
      const isEdge = flip % 2 === 0;
      const offset = isEdge ? (size - edge + random.below(2 * edge)) % size : random.below(size);
      await judge(offset);
    }
  });
}
