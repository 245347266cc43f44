/**
 * What a reading process reads: a set through its chain, with what delta logs tell since where that is asked for.
 *
 *     store -> chain ---+
 *                       +-> logged source
 *     logs  -> index ---+
 *
 * Which set it is may be for the logs to say: the newest one whose point they begin at.
 */

import { present } from '../base/index.ts';
import { type ChainView, Store } from '../blockset/index.ts';
import { type DeltaIndex, DeltaReader } from '../delta/index.ts';
import { joinLogs } from '../restore/index.ts';
import type { LogsPlace } from '../volume/index.ts';
import { createDeviceRegistry } from './devices.ts';
import { factsOf, type SetFacts } from './set-facts.ts';
import type { LogsWish, StartMessage } from './store-reader-messages.ts';

/** What was opened. */
export interface OpenedContent {
  /** Undefined where the logs are all there is. */
  readonly chain: ChainView | undefined;
  /** Undefined without logs. */
  readonly index: DeltaIndex | undefined;
  readonly set: SetFacts;
  readonly logs: LogsPlace | undefined;
}

/**
 * Opens it; it stays open until the process ends.
 *
 * @throws {StoreError}, {CorruptionError}, {DeltaError}, {RestoreError} 'no-base'
 */
export async function openContent(
  start: Pick<StartMessage, 'storePath' | 'set' | 'key' | 'logs'>,
): Promise<OpenedContent> {
  const { storePath, key, logs } = start;
  const store =
    storePath === ''
      ? undefined
      : await Store.open(storePath, { readOnly: true, ...(key === undefined ? {} : { key }) });
  if (logs === undefined) {
    const opened = present(store, 'Without logs there is a store');
    const chain = await opened.chain((await opened.find(start.set)).id);
    return { chain, index: undefined, set: factsOf(chain.header), logs: undefined };
  }
  return await openWithLogs(store, start.set, logs);
}

async function openWithLogs(
  store: Store | undefined,
  selector: string,
  wish: LogsWish,
): Promise<OpenedContent> {
  const { places, beforeMs, upTo } = wish;
  const named = store === undefined || selector === '' ? undefined : await store.find(selector);
  const volumeId = wish.volumeId ?? named?.header?.volumeId;
  const reader = await DeltaReader.open(places, { registry: createDeviceRegistry(), volumeId });
  const isFixed = wish.startPoint !== undefined || (named !== undefined && !selector.startsWith('latest'));
  const { set, startPoint } =
    wish.startPoint === ''
      ? { set: undefined, startPoint: '' }
      : await joinLogs(store, reader, { beforeMs, set: isFixed ? named : undefined });
  const index = await reader.index(startPoint, { beforeMs, upTo });
  const chain = set === undefined ? undefined : await store?.chain(set.id);
  const { volume, points } = reader;
  const found: LogsPlace = {
    places,
    volumeId: volume.volumeId,
    startPoint,
    ...(beforeMs === undefined ? {} : { beforeMs }),
    ...(upTo === undefined ? {} : { upTo }),
  };
  const facts = {
    set: '',
    volumeId: volume.volumeId,
    volumeName: volume.name,
    point: startPoint,
    createdMs: points[0]?.createdMs ?? 0,
    trackSizeBytes: volume.trackSizeBytes,
    ...(chain === undefined ? {} : factsOf(chain.header)),
    sizeBytes: Math.max(chain?.sizeBytes ?? 0, index.volumeBytes),
  };
  return { chain, index, set: facts, logs: found };
}
