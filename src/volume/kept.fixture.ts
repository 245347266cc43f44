/** What tests see of snapshots: their content as read, and what their files hold. */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { labelOf, type TestVolume } from '../sim/index.ts';
import type { Volume } from './index.ts';
import { SnapshotStore } from './snapshot-store.ts';

/** The labels of a snapshot's tracks. */
export async function labelsInSnapshot(volume: Volume, name: string): Promise<string[]> {
  const { trackCount, trackSizeBytes } = volume.geometry;
  const device = volume.openSnapshot(name);
  try {
    const whole = Buffer.alloc(device.sizeBytes);
    await device.read(whole, 0);
    return Array.from({ length: trackCount }, (_, track) =>
      labelOf(whole.subarray(track * trackSizeBytes, (track + 1) * trackSizeBytes)),
    );
  } finally {
    await device.close();
  }
}

/** The files in the volume's folder of snapshots. */
export function snapshotFiles({ directory }: Pick<TestVolume, 'directory'>): string[] {
  return readdirSync(join(directory, 'snapshots'));
}

type Place = Pick<TestVolume, 'directory' | 'volume'>;

function openFile({ directory, volume }: Place, name: string): Promise<SnapshotStore> {
  const { trackSizeBytes } = volume.geometry;
  const place = {
    directory: join(directory, 'snapshots'),
    storeId: name.replace('.tracks', ''),
    trackSizeBytes,
  };
  return SnapshotStore.open(place, { readOnly: true });
}

/** The files in which a track differs from its checksum. */
export async function damagedFiles(test: Place): Promise<string[]> {
  const damaged: string[] = [];
  for (const name of snapshotFiles(test)) {
    const store = await openFile(test, name);
    if ((await store.verify()).size > 0) damaged.push(name);
    await store.close();
  }
  return damaged;
}

/** What the file of the volume's only snapshot holds: labels by track, of which there may be more than one. */
export async function keptIn(test: TestVolume): Promise<Record<number, string>> {
  const [name = ''] = snapshotFiles(test);
  const { trackSizeBytes } = test.volume.geometry;
  const store = await openFile(test, name);
  try {
    const kept: Record<number, string> = {};
    for (const track of store.tracks()) {
      const content = Buffer.alloc(trackSizeBytes);
      await store.read(content, track, 0);
      kept[track] = labelOf(content);
    }
    return kept;
  } finally {
    await store.close();
  }
}
