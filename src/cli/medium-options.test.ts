/**
 * Goal: a medium is meant where nothing else can be, a mistyped store does not become one, and what takes a store is
 * refused by name. Method: tables over a directory, a file and nothing.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { type MediumOptions, readMedium, refuseWithMedium } from './medium-options.ts';

const NONE: MediumOptions = {
  label: undefined,
  mediumSize: undefined,
  load: undefined,
  overwrite: undefined,
};

t.test('what is a medium', (t) => {
  const directory = t.testdir({});
  const at = (name: string): string => join(directory, name);
  writeFileSync(at('file'), '');
  for (const place of [at('file'), '/dev/null', at('new.tar'), at('m-{n}')]) {
    t.same(readMedium(place, NONE), { medium: { place, label: 'cowbell' } }, place);
  }
  for (const place of [directory, at('store'), at('backup.tar/store')]) t.same(readMedium(place, NONE), {});
  const place = at('store');
  const options = { label: 'a', mediumSize: '4M', load: './load', overwrite: true };
  t.same(readMedium(place, options), {
    medium: { place, label: 'a', sizeBytes: 4_194_304, load: './load', overwrite: true },
  });
  t.throws(() => readMedium(directory, { ...NONE, label: 'a' }), {
    code: 'usage',
    message: `${directory} is a directory, wanted a file, a pipe or a device where`,
  });
  t.throws(() => readMedium(place, { ...NONE, label: 'a b' }), { message: `--label is 'a b'` });
  t.throws(() => readMedium(place, { ...NONE, mediumSize: 'x' }), { message: `--medium-size is 'x'` });
  t.end();
});

t.test('what takes a store', (t) => {
  const target = { place: '/m.tar', label: 'a' };
  const style = { codec: 'none' } as const;
  const wanted = { hasKey: false, isDryRun: false, volumeCount: 1 };
  for (const level of ['auto', 'full'] as const) refuseWithMedium(target, { level, style }, wanted);
  for (const [params, more, message] of [
    [{ level: 'incremental', style }, {}, 'Level incremental takes a store, and /m.tar is a medium'],
    [{ level: 'differential', style }, {}, 'Level differential takes a store'],
    [{ level: 'full', style: { ...style, lanes: ['/l'] } }, {}, '--lane takes a store'],
    [{ level: 'full', style }, { hasKey: true }, 'A key takes a store'],
    [{ level: 'full', style }, { isDryRun: true }, '--dry-run takes a store'],
    [{ level: 'full', style }, { volumeCount: 2 }, 'More than one volume takes a store'],
  ] as const) {
    t.throws(() => refuseWithMedium(target, params, { ...wanted, ...more }), { code: 'usage', message });
  }
  t.end();
});
