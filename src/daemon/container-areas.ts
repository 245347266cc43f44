/**
 * Makes the areas of an intermediate container from what was asked for.
 *
 * A path that is a directory, or where nothing is yet, becomes a file of its own, whose name is removed as
 * soon as it is open: nothing in a container outlives its session, so a killed process leaves nothing behind.
 * A block device is used as it is. An existing regular file is refused: it would be overwritten, and nobody
 * asks for that on purpose.
 */

import { open, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf, randomId, systemCode } from '../base/index.ts';
import { type ContainerArea, DeviceArea, MemoryArea } from '../container/index.ts';
import { openFileDevice } from '../device/index.ts';
import type { ContainerSpec } from './backup-params.ts';
import { DaemonError } from './errors.ts';

/**
 * Opens all areas or none; they belong to the caller. Areas too small for one track are left out.
 *
 * @throws {DaemonError} bad-container
 */
export async function openContainerAreas(
  specs: readonly ContainerSpec[],
  trackSizeBytes: number,
): Promise<ContainerArea[]> {
  const areas: ContainerArea[] = [];
  try {
    for (const spec of specs) {
      if (spec.sizeBytes < trackSizeBytes) continue;
      areas.push(
        spec.kind === 'memory'
          ? new MemoryArea({ sizeBytes: spec.sizeBytes, trackSizeBytes })
          : await openArea(spec, trackSizeBytes),
      );
    }
    return areas;
  } catch (error) {
    await Promise.all(areas.map((area) => area.close()));
    throw error;
  }
}

async function openArea(
  spec: { readonly path: string; readonly sizeBytes: number },
  trackSizeBytes: number,
): Promise<ContainerArea> {
  const { path } = spec;
  const sizeBytes = Math.floor(spec.sizeBytes / trackSizeBytes) * trackSizeBytes;
  try {
    const kind = await kindOf(path);
    if (kind === 'other') throw new TypeError('it exists and is neither a directory nor a block device');
    const place = { offsetBytes: 0, lengthBytes: sizeBytes };
    if (kind === 'block') {
      const device = await openFileDevice({
        path,
        readOnly: false,
        syncName: 'container',
        exclusive: true,
        ...place,
      });
      return new DeviceArea({ device, trackSizeBytes });
    }
    const file = kind === 'directory' ? join(path, `.cowbell-container-${randomId()}`) : path;
    const made = await open(file, 'wx', 0o600);
    try {
      await made.truncate(sizeBytes);
      const device = await openFileDevice({ path: file, readOnly: false, syncName: 'container', ...place });
      return new DeviceArea({ device, trackSizeBytes });
    } finally {
      await unlink(file);
      await made.close();
    }
  } catch (error) {
    const message = `Container area ${path} cannot be used: ${messageOf(error)}`;
    throw new DaemonError('bad-container', message, { path }, { cause: error });
  }
}

async function kindOf(path: string): Promise<'missing' | 'directory' | 'block' | 'other'> {
  try {
    const stats = await stat(path);
    if (stats.isDirectory()) return 'directory';
    return stats.isBlockDevice() ? 'block' : 'other';
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return 'missing';
    throw error;
  }
}
