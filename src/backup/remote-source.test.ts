/**
 * Goal: a child reads its home itself only where the home, as it was opened, has all of the volume. Method: the calls
 * answered by hand.
 */

import t from 'tap';
import { TrackSet } from '../tracks/index.ts';
import { RemoteSource } from './remote-source.ts';

const REQUEST = { consumer: 'store', level: 'auto', candidates: [] } as const;

async function begin(homeBytes: number, planBytes: number) {
  const home = { sizeBytes: homeBytes, read: () => undefined, extents: async () => [] };
  const volume = { volumeId: 'v', name: 'vol', trackSizeBytes: 4096 };
  const source = new RemoteSource({
    volume,
    home,
    send: (message) => {
      if (message.kind !== 'call') return;
      const plan = { session: 's', level: 'full', point: 'p', base: undefined, reason: undefined } as const;
      const gives = { ...plan, sizeBytes: planBytes, tracks: TrackSet.all(1).serialize(), freezeMs: 0 };
      queueMicrotask(() => source.settle({ kind: 'reply', id: message.id, gives }));
    },
  });
  await source.begin(REQUEST);
  return { source, home };
}

t.test('a home that is as large as the volume, or larger, is read', async (t) => {
  for (const homeBytes of [8192, 16_384]) {
    const { source, home } = await begin(homeBytes, 8192);
    t.equal(source.home, home);
  }
});

t.test('where the volume grew after the home was opened, the server reads', async (t) => {
  const { source, home } = await begin(8192, 8704);
  t.not(source.home, home);
});
