/**
 * Goal: what an earlier version wrote can be checked and restored by this one, byte for byte, and merged.
 *
 * Method: copies of the stores and media in `fixtures/formats`, each of the version that introduced its format. The
 * copies are taken since a store that is opened may be written.
 */
import { cpSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import t, { type Test } from 'tap';
import { mustCowbell, ROOT, temporaryDirectory } from './support/process.ts';

const FIXTURES = join(ROOT, 'fixtures/formats');
const CONTENT = gunzipSync(readFileSync(join(FIXTURES, 'content.gz')));

interface Scratch {
  readonly at: (name: string) => string;
  readonly key: readonly string[];
}

function scratch(t: Test): Scratch {
  const directory = temporaryDirectory(t);
  cpSync(FIXTURES, directory, { recursive: true });
  const at = (name: string): string => join(directory, name);
  return { at, key: ['--key-file', at('key-of-encrypted-store-1')] };
}

async function restores(t: Test, { at }: Scratch, from: string, more: readonly string[] = []): Promise<void> {
  await mustCowbell(['restore', from, 'latest', at('out'), ...more]);
  t.ok(readFileSync(at('out')).equals(CONTENT), `${from} gives back what was saved`);
}

t.test('a store of format 1 is verified and restored', async (t) => {
  const all = scratch(t);
  await mustCowbell(['store', 'verify', all.at('store-1')]);
  await restores(t, all, all.at('store-1'));
});

t.test('its catalog comes back from its sets', async (t) => {
  const all = scratch(t);
  await mustCowbell(['store', 'rebuild-catalog', all.at('store-1')]);
  await restores(t, all, all.at('store-1'));
});

t.test('an encrypted store of format 1 is verified and restored', async (t) => {
  const all = scratch(t);
  await mustCowbell(['store', 'verify', all.at('encrypted-store-1'), ...all.key]);
  await restores(t, all, all.at('encrypted-store-1'), all.key);
});

t.test('a medium of format 1 is restored, and imported into a store of today', async (t) => {
  const all = scratch(t);
  await restores(t, all, all.at('medium-1.tar'));
  const other = scratch(t);
  await mustCowbell(['store', 'init', other.at('store')]);
  await mustCowbell(['store', 'import', other.at('store'), '--from', other.at('medium-1.tar')]);
  await restores(t, other, other.at('store'));
});

t.test('a chain of format 1 is merged into a set of today', async (t) => {
  const all = scratch(t);
  await mustCowbell(['store', 'merge', all.at('store-1'), 'latest']);
  await mustCowbell(['store', 'verify', all.at('store-1')]);
  await restores(t, all, all.at('store-1'));
});
