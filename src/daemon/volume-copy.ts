/**
 * The copy of a volume, or a snapshot, to other devices, as a session of the process that owns the volume: no child is
 * needed, since neither a store nor a file under a memory map takes part.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { RateLimit } from '../backup/index.ts';
import { type CopyPlanOptions, copyVolume, planCopy, readRemapFile, requestsOf } from '../restore/index.ts';
import { isVolumeHome } from '../volume/index.ts';
import { openContainerAreas } from './container-areas.ts';
import type { RequestEvents } from './control-server.ts';
import type { CopyForecast, CopyOutcome, CopyParams } from './copy-params.ts';
import type { VolumeHost } from './volume-host.ts';

/** Copies; see `copyVolume` for promises and errors. One session runs to the same targets at a time. */
export function copyOnto(host: VolumeHost, params: CopyParams, events: RequestEvents): Promise<CopyOutcome> {
  const { volume, options } = host;
  const { targets, snapshot, container, maxWaitMs } = params;
  return host.sessions.run(
    'copy',
    async (session) => {
      events.session(session.id);
      const startedMs = options.clock.monotonicMs();
      const result = await copyVolume({
        ...(await planOptionsOf(host, params)),
        session: session.id,
        openAreas: () => openContainerAreas(container, volume.identity.trackSizeBytes),
        ...(maxWaitMs === undefined ? {} : { waitMsMax: maxWaitMs }),
        ...rateOf(host, params, session.signal),
        signal: session.signal,
        clock: options.clock,
        onProgress: (progress) => {
          session.note(progress);
          events.progress(progress);
        },
      });
      const durationMs = options.clock.monotonicMs() - startedMs;
      return { ...result, targets, snapshot, durationMs };
    },
    targets.join(', '),
  );
}

/** What that would send; see `planCopy`. */
export async function planCopyOnto(host: VolumeHost, params: CopyParams): Promise<CopyForecast> {
  const { targets, snapshot } = params;
  return { ...(await planCopy(await planOptionsOf(host, params))), targets, snapshot };
}

async function planOptionsOf(host: VolumeHost, params: CopyParams): Promise<CopyPlanOptions> {
  const { targets, remap, snapshot, full } = params;
  // Neither the one thing nor the other; a snapshot stays what it is.
  if (snapshot === undefined) host.refuseRollingBack();
  const common = {
    volume: host.volume,
    registry: host.options.registry,
    isVolumeHome,
    full,
    ...(snapshot === undefined ? {} : { snapshot }),
  };
  if (remap === undefined) return { ...common, targets: targets.map((uri) => ({ name: uri, uri })) };
  const read = await readRemapFile(remap);
  return { ...common, targets: requestsOf(read, targets, remap), table: read.table };
}

function rateOf(
  { options }: VolumeHost,
  { rateBytesPerSecond: bytesPerSecond }: CopyParams,
  signal: AbortSignal,
): { readonly rate?: RateLimit } {
  if (bytesPerSecond === undefined) return {};
  const wait = (ms: number): Promise<void> => delay(ms, undefined, { signal });
  return { rate: new RateLimit({ bytesPerSecond, clock: options.clock, wait }) };
}
