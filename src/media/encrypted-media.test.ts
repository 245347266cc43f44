/**
 * Goal: media of an encrypted store show nothing that the store does not show, and are as good as any for whoever
 * has its key: the store can be made again from them alone, keys included.
 *
 * Method: a set whose names and content would be found in any bytes that hold them, exported and imported with
 * the key, without one, and with the key of another store.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { present } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { importMedia, lackOf } from './import.ts';
import { MediaChain } from './media-chain.ts';
import {
  clock,
  contentOf,
  entriesOf,
  exportAll,
  labelled,
  MemoryMedia,
  saveSet,
  scratch,
  storedSet,
  type Tracks,
  withoutSyncs,
} from './media.fixture.ts';

t.test('media of an encrypted store', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const at = (name: string): string => join(directory, name);
  for (const name of ['key', 'other-key']) writeFileSync(at(name), Buffer.alloc(64, name));
  const key = { keyFile: at('key') };
  const store = await Store.init(at('from'), { key });
  const tracks: Tracks = Array.from({ length: 20 }, (_, track) => [track, labelled(`secret-${track}`)]);
  const { header } = await saveSet(store, { volumeName: 'secret-name', codec: 'none' }, tracks, { lanes: 2 });
  const media = new MemoryMedia();
  await exportAll(store, media, { mediumSizeBytes: 64 * 1024 });
  t.ok(media.media.length > 1);

  for (const medium of media.media) t.notOk(medium.includes('secret-'), 'nothing of it can be read');
  const [first] = media.media;
  const announced = entriesOf(present(first, 'A medium')).find(({ kind }) => kind === 'tracks');
  t.equal(announced?.content.length, 0, 'nor which tracks it has');

  let asked: unknown;
  const again = await importMedia(
    async (from) => {
      asked = from?.id;
      return await Store.init(at('again'), { key, ...(from === undefined ? {} : { lost: from }) });
    },
    { clock, openInput: media.input() },
  );
  t.equal(asked, store.id);
  t.same(again.imported, [header.id]);
  const made = await Store.open(at('again'), { key });
  t.equal(made.id, store.id, 'volumes know it as the one that was lost');
  t.equal((await storedSet(made, header.id)).seal, (await storedSet(store, header.id)).seal);
  t.ok((await contentOf(made, header.id)).equals(await contentOf(store, header.id)));

  const wrong = Store.init(at('wrong'), {
    key: { keyFile: at('other-key') },
    lost: { id: store.id, keys: present(store.keysCopy(), 'Keys') },
  });
  await t.rejects(wrong, { code: 'wrong-key' });

  const plain = await Store.init(at('plain'));
  const unlocked = importMedia(async () => plain, { clock, openInput: media.input() });
  await t.rejects(unlocked, { code: 'key-needed' });
  t.same(await plain.list(), []);

  const other = await Store.init(at('other'), { key: { keyFile: at('other-key') } });
  const refused = await importMedia(async () => other, { clock, openInput: media.input() });
  t.same(refused.imported, []);
  t.match(
    lackOf(present(refused.incomplete[0], 'An incomplete set')),
    /does not open with the key of its store/,
  );
  t.same(await other.list(), []);

  const direct = MediaChain.open('latest', { clock, openInput: media.input() });
  await t.rejects(direct, { code: 'encrypted', message: /wanted an import into a store first/ });
});

t.test('the store that is made again from plain media has its id too', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const store = await Store.init(join(directory, 'from'));
  await saveSet(store, {}, [[1, labelled('a')]]);
  const media = new MemoryMedia();
  await exportAll(store, media);
  const made = join(directory, 'made');
  await importMedia(async (from) => await Store.init(made, from === undefined ? {} : { lost: from }), {
    clock,
    openInput: media.input(),
  });
  t.equal((await Store.open(made)).id, store.id);
});
