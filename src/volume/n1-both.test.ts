/**
 * EXAMPLES N1: a write goes to both, the home and the deltas.
 *
 * Method: the real volume; its home and the member of its delta store are devices with gates, and remember what they were
 * asked for. After power cuts of either or both, at any write, the logs are read without the volume and compared with
 * what its home holds.
 */

import t from 'tap';
import { MIB, SeededRandom } from '../base/index.ts';
import { DeltaReader } from '../delta/index.ts';
import { FaultyDevice, MemoryDevice } from '../device/index.ts';
import {
  labelled,
  labelOf,
  labelsOf,
  makeTestVolume,
  TEST_TRACK_BYTES,
  type TestVolume,
  writeLabel,
} from '../sim/index.ts';

const TRACK_COUNT = 8;
const MEMBER = 'mem:deltas';

interface Example {
  readonly test: TestVolume;
  readonly member: FaultyDevice;
}

async function begin(t: Parameters<typeof makeTestVolume>[0], boots = ['one']): Promise<Example> {
  const member = new FaultyDevice(new MemoryDevice({ sizeBytes: 8 * MIB }));
  const deltaDevices = new Map([[MEMBER, member]]);
  const bootId = (): string => boots.at(-1) ?? '';
  const test = await makeTestVolume(t, { trackCount: TRACK_COUNT, deltaDevices, bootId });
  return { test, member };
}

/** What the logs alone tell of each track: its label, or nothing. */
async function logged({ test, member }: Example): Promise<(string | undefined)[]> {
  const { volumeId } = test.volume.identity;
  const registry = { open: async () => new Unclosed(member) };
  const reader = await DeltaReader.open([MEMBER], { registry, volumeId });
  const index = await reader.index('');
  const labels: (string | undefined)[] = [];
  for (let track = 0; track < TRACK_COUNT; track += 1) {
    const content = Buffer.alloc(TEST_TRACK_BYTES);
    labels.push((await index.overlay(track, content)) ? labelOf(content) : undefined);
  }
  await reader.close();
  return labels;
}

/** The member stays open for the volume. */
class Unclosed extends FaultyDevice {
  override async close(): Promise<void> {
    // Its owner does.
  }
}

const settle = async (): Promise<void> => {
  for (let count = 0; count < 20; count += 1) await new Promise((resolve) => setImmediate(resolve));
};

t.test('a read touches the home only', async (t) => {
  const { test, member } = await begin(t);
  await writeLabel(test.volume, 3, 'a3');
  member.forgetOperations();
  t.same((await labelsOf(test.volume))[3], 'a3');
  t.same(member.operations, []);
});

t.test('the first write of an epoch makes the record of an object, later ones reuse it', async (t) => {
  const example = await begin(t);
  const { test } = example;
  await writeLabel(test.volume, 3, 'a3');
  await writeLabel(test.volume, 3, 'b3');
  await writeLabel(test.volume, 5, 'a5');
  await test.volume.flush();
  t.same(await logged(example), [
    undefined,
    undefined,
    undefined,
    'b3',
    undefined,
    'a5',
    undefined,
    undefined,
  ]);
});

t.test('the reply leaves only when both have the write', async (t) => {
  const example = await begin(t);
  const { test, member } = example;
  // The region is known from now on: what follows is the write alone.
  await writeLabel(test.volume, 2, 'a2');
  for (const shut of ['home', 'deltas'] as const) {
    const gate = (shut === 'home' ? test.home : member).hold({ kind: 'write' });
    let isDone = false;
    const write = writeLabel(test.volume, 2, shut).then(() => {
      isDone = true;
    });
    await gate.arrived(1);
    await settle();
    t.notOk(isDone, `${shut} shut: no reply`);
    if (shut === 'home') t.equal((await logged(example))[2], 'home', 'and the record is there');
    gate.open();
    await write;
    t.ok(isDone);
    await test.volume.flush();
    t.equal((await logged(example))[2], shut);
  }
});

t.test('after a power cut at any point home and deltas agree, and nothing flushed is missing', async (t) => {
  for (let seed = 1; seed <= 60; seed += 1) {
    const random = new SeededRandom(seed);
    const boots = ['one'];
    const example = await begin(t, boots);
    const { test, member } = example;
    const flushed: string[] = Array.from({ length: TRACK_COUNT }, () => '0');
    const later: Set<string>[] = Array.from({ length: TRACK_COUNT }, () => new Set());
    for (let count = random.below(12); count > 0; count -= 1) {
      const track = random.below(TRACK_COUNT);
      const label = `${seed}.${count}`;
      await test.volume.write(labelled(label), track * TEST_TRACK_BYTES);
      later[track]?.add(label);
      if (!random.chance(0.25)) continue;
      await test.volume.flush();
      for (const [one, labels] of later.entries()) {
        flushed[one] = [...labels].at(-1) ?? flushed[one] ?? '0';
        labels.clear();
      }
    }
    // Of a machine with everything on it, or of the one or the other alone.
    const which = random.pick(['both', 'home', 'deltas']);
    if (which !== 'deltas') await test.home.powerCut(random);
    if (which !== 'home') await member.powerCut(random);
    boots.push('two');
    await test.crash();
    const home = await labelsOf(test.volume);
    const log = await logged(example);
    for (let track = 0; track < TRACK_COUNT; track += 1) {
      const here = home[track] ?? '';
      const name = `seed ${seed}, ${which} cut, track ${track}`;
      const isTorn = here === '-';
      const isAllowed = isTorn
        ? later[track]?.size !== 0
        : here === flushed[track] || later[track]?.has(here);
      if (isAllowed !== true) t.fail(`${name} holds ${here}, flushed was ${flushed[track]}`);
      if (log[track] === undefined ? here !== '0' : log[track] !== here && !isTorn)
        t.fail(`${name} holds ${here}, the logs tell ${log[track]}`);
    }
  }
  t.pass('60 seeds');
});
