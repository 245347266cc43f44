/** Goal: where a home is to be is read as it is meant, or refused with what is wrong. Method: a table, and a file. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { messageOf } from '../base/index.ts';
import { type LayoutArguments, readHome } from './layout-options.ts';

const NONE: LayoutArguments = { home: undefined, layout: undefined, layoutFile: undefined };

function readIn(directory: string, options: Partial<LayoutArguments>): Promise<unknown> {
  return readHome({ ...NONE, ...options }, directory).catch((error: unknown) => messageOf(error));
}

t.test('what is meant', async (t) => {
  t.same(await readIn('/d', {}), { kind: 'own' });
  t.same(await readIn('/d', { home: 'a@0+4K' }), { kind: 'plain', place: '/d/a@0+4K' });
  t.match(await readIn('/d', { home: ['a', 'nbd://box/b'], layout: 'mirror' }), {
    kind: 'layout',
    layout: { extents: [{ kind: 'mirror', members: [{ place: '/d/a' }, { place: 'nbd://box/b' }] }] },
  });
  t.match(await readIn('/d', { home: ['a@0+4K', '/b'], layout: 'concat' }), {
    layout: {
      extents: [
        { kind: 'plain', members: [{ place: '/d/a@0+4K' }] },
        { kind: 'plain', members: [{ place: '/b' }] },
      ],
    },
  });
});

t.test('a file', async (t) => {
  const directory = t.testdir({});
  const extents = [{ kind: 'mirror', members: ['a', '/b'] }];
  writeFileSync(join(directory, 'l.json'), JSON.stringify({ format: 'cowbell-layout', version: 0, extents }));
  t.match(await readIn(directory, { layoutFile: 'l.json' }), {
    kind: 'layout',
    from: 'l.json',
    layout: { extents: [{ kind: 'mirror', members: [{ place: join(directory, 'a') }, { place: '/b' }] }] },
  });
  writeFileSync(join(directory, 'l.json'), '{');
  t.match(await readIn(directory, { layoutFile: 'l.json' }), /^l\.json: the document is no JSON/);
});

t.test('what is refused', async (t) => {
  for (const [options, message] of [
    [{ home: '' }, '--home is empty, wanted a path or a URI'],
    [{ home: ['a', 'b'] }, '--home is given 2 times, wanted --layout concat, stripe, mirror with it'],
    [{ layout: 'mirror' }, '--layout mirror is given without --home, wanted the members'],
    [{ home: 'a', layout: 'stripe' }, '--layout stripe is given with one --home, wanted at least 2'],
    [
      { home: 'a', layoutFile: 'l.json' },
      '--layout-file says where the home is, wanted neither --home nor --layout beside it',
    ],
    [{ layoutFile: 'missing.json' }, /^Layout file missing\.json cannot be read: ENOENT/],
  ] as const)
    t.match(await readIn('/nowhere', options), message);
});
