/**
 * Goal: a volume gets deltas, further places for them, and other ones, and at no time is the last place given up that has
 * what is not backed up.
 *
 * Method: the real volume and delta store in directories; what the logs tell is read from one place alone.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { KIB, systemClock } from '../base/index.ts';
import { DeltaReader } from '../delta/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { labelOf, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { changeDeltas, createVolume, Volume } from './index.ts';

interface Example {
  readonly directory: string;
  readonly at: (name: string) => string;
  readonly open: () => Promise<Volume>;
  readonly change: (change: {
    add?: string[];
    remove?: string[];
    keepLogMs?: number;
  }) => ReturnType<typeof changeDeltas>;
}

async function begin(t: Test, deltas: readonly string[]): Promise<Example> {
  const root = mkdtempSync(join(tmpdir(), 'cowbell-deltas-'));
  t.teardown(() => rmSync(root, { recursive: true, force: true }));
  const at = (name: string): string => join(root, name);
  const directory = at('v');
  const places = deltas.map((name) => ({ place: at(name) }));
  await createVolume(directory, {
    sizeBytes: 8 * TEST_TRACK_BYTES,
    trackSizeBytes: TEST_TRACK_BYTES,
    ...(places.length === 0 ? {} : { deltas: { places } }),
  });
  const registry = new DeviceRegistry();
  return {
    directory,
    at,
    open: () => Volume.open(directory, { registry, activity: 'testing', deltaSegmentBytes: 64 * KIB }),
    change: ({ add = [], remove = [], ...rest }) =>
      changeDeltas(
        directory,
        { add: add.map((name) => ({ place: at(name) })), remove: remove.map(at), ...rest },
        systemClock,
      ),
  };
}

/** What one place alone tells of a track, from the beginning of the volume on. */
async function told({ at }: Example, name: string, track: number): Promise<string> {
  const reader = await DeltaReader.open([at(name)], { registry: new DeviceRegistry() });
  const index = await reader.index(reader.points[0]?.point ?? '');
  const content = Buffer.alloc(TEST_TRACK_BYTES);
  await index.overlay(track, content);
  await reader.close();
  return labelOf(content);
}

t.test('a place that is added is made from the others, and then one of these may go', async (t) => {
  const example = await begin(t, ['one']);
  const volume = await example.open();
  await writeLabel(volume, 3, 'a3');
  await t.rejects(example.change({ add: ['two'] }), { code: 'in-use' }, 'not while it is open');
  await volume.close();
  await example.change({ add: ['two'], keepLogMs: 1000 });
  await t.rejects(
    example.change({ remove: ['one'] }),
    { code: 'member-lost' },
    'the new one has nothing yet',
  );
  const again = await example.open();
  t.match(again.status().deltas, { keepLogMs: 1000, members: [{ state: 'healthy' }, { state: 'lost' }] });
  await again.tend(new AbortController().signal);
  t.match(again.status().deltas?.members, [{ state: 'healthy' }, { state: 'healthy' }]);
  await writeLabel(again, 5, 'a5');
  await again.close();
  t.equal(await told(example, 'two', 3), 'a3');
  t.equal(await told(example, 'two', 5), 'a5');
  const after = await example.change({ remove: ['one'] });
  t.match(after?.places, [{ place: example.at('two') }]);
  const last = await example.open();
  t.equal(last.status().deltas?.brokenOff, undefined);
  await last.close();
});

t.test('the first deltas of a volume do not pretend to know what was before', async (t) => {
  const example = await begin(t, []);
  const volume = await example.open();
  await writeLabel(volume, 3, 'a3');
  await volume.close();
  await t.rejects(example.change({ keepLogMs: 5 }), { code: 'unknown-member' });
  await example.change({ add: ['one'] });
  const again = await example.open();
  await writeLabel(again, 5, 'a5');
  await again.flush();
  const reader = await DeltaReader.open([example.at('one')], { registry: new DeviceRegistry() });
  t.notOk(reader.has(''), 'not from the beginning');
  await reader.close();
  t.equal(await told(example, 'one', 5), 'a5');
  await again.close();
  t.equal(await example.change({ remove: ['one'] }), undefined);
  const last = await example.open();
  t.equal(last.status().deltas, undefined);
  await last.close();
});

t.test('a place that the volume does not have cannot go', async (t) => {
  const example = await begin(t, ['one']);
  await t.rejects(example.change({ remove: ['two'] }), {
    code: 'unknown-member',
    message: /wanted one of .*one$/,
  });
});
