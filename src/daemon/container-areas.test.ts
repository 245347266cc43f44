/**
 * Goal: areas hold what they were asked for, leave no name behind, and never overwrite a file.
 *
 * Method: every kind of path in a temporary directory, looked at while the areas are open.
 */

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { openContainerAreas } from './container-areas.ts';

const TRACK = 65_536;

t.test('memory, a new file and a directory become areas, and no name stays', async (t) => {
  const directory = t.testdir();
  mkdirSync(join(directory, 'inside'));
  const areas = await openContainerAreas(
    [
      { kind: 'memory', sizeBytes: 3 * TRACK },
      { kind: 'path', path: join(directory, 'new'), sizeBytes: 2 * TRACK + 100 },
      { kind: 'path', path: join(directory, 'inside'), sizeBytes: TRACK },
    ],
    TRACK,
  );
  t.strictSame(
    areas.map((area) => area.slotCount),
    [3, 2, 1],
  );
  t.strictSame(readdirSync(directory), ['inside']);
  t.strictSame(readdirSync(join(directory, 'inside')), []);
  for (const area of areas) {
    const content = Buffer.alloc(TRACK, area.slotCount);
    await area.put(area.slotCount - 1, content);
    t.ok(content.equals(await area.get(area.slotCount - 1)), area.description);
    await area.close();
  }
});

t.test('what holds no track is left out', async (t) => {
  const path = join(t.testdir(), 'new');
  t.strictSame(await openContainerAreas([], TRACK), []);
  const small = { sizeBytes: TRACK - 1 };
  t.strictSame(
    await openContainerAreas(
      [
        { kind: 'memory', ...small },
        { kind: 'path', path, ...small },
      ],
      TRACK,
    ),
    [],
  );
});

t.test('an existing file and a missing directory are refused', async (t) => {
  const directory = t.testdir();
  const precious = join(directory, 'precious');
  writeFileSync(precious, 'precious');
  await t.rejects(openContainerAreas([{ kind: 'path', path: precious, sizeBytes: TRACK }], TRACK), {
    code: 'bad-container',
    message: /precious cannot be used: it exists/,
  });
  t.equal(readFileSync(precious, 'utf8'), 'precious');
  const lost = join(directory, 'no/such');
  await t.rejects(openContainerAreas([{ kind: 'path', path: lost, sizeBytes: TRACK }], TRACK), {
    code: 'bad-container',
    message: /ENOENT/,
  });
});
