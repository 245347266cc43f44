/**
 * The process that reads media for a volume under recovery: opens them in turn, unpacks and checks what is wanted, and
 * hands it over a batch at a time, in the order in which it lies there. The process around it is the command line's.
 *
 * Unpacking takes longer than the server may leave its clients alone; that is why it is not done there.
 */

import { systemClock, toWireError } from '../base/index.ts';
import { trackCountOf } from '../blockset/index.ts';
import { MediaChain, type OpenInput } from '../media/index.ts';
import { TrackSet } from '../tracks/index.ts';
import {
  type FedTrack,
  type FeedChildMessage,
  type FeedParentMessage,
  isFeedParentMessage,
  type MediaPlaces,
} from './medium-feed-messages.ts';
import { factsOf } from './set-facts.ts';

/** Tracks of zeroes in one batch. */
const ZEROES_AT_ONCE = 4096;

export interface MediumFeedOptions {
  /** Resolves when the message is on its way. */
  readonly send: (message: FeedChildMessage) => Promise<void>;
  readonly onMessage: (listener: (message: unknown) => void) => void;
  readonly openMedia: (media: MediaPlaces, warn: (sentence: string) => void) => OpenInput;
}

/** Runs until everything was handed over or cannot be; the process has to end then. */
export async function runMediumFeed({ send, onMessage, openMedia }: MediumFeedOptions): Promise<void> {
  const asked = new Inbox();
  onMessage((message) => {
    if (isFeedParentMessage(message)) asked.put(message);
  });
  try {
    const start = await asked.take('start');
    const warn = (sentence: string): void => void send({ kind: 'warning', sentence });
    const chain = await MediaChain.open(start.set, {
      clock: systemClock,
      openInput: openMedia(start.media, warn),
      onFailure: async ({ medium, reason }) => warn(`Medium ${medium} failed: ${reason}`),
    });
    try {
      await send({ kind: 'begun', set: factsOf(chain.header) });
      const wanted = await asked.take('wanted');
      const tracks = TrackSet.deserialize(
        Buffer.from(wanted.tracks),
        'the serving process',
        trackCountOf(chain.header),
      );
      for await (const batch of batches(chain, tracks)) {
        await asked.take('more');
        await send({ kind: 'batch', tracks: batch });
      }
      await asked.take('more');
      await send({ kind: 'batch', tracks: [] });
    } finally {
      await chain.close();
    }
  } catch (error) {
    await send({ kind: 'failed', error: toWireError(error) });
  }
}

async function* batches(chain: MediaChain, wanted: TrackSet): AsyncGenerator<readonly FedTrack[]> {
  let zeroes: FedTrack[] = [];
  for (const track of wanted.difference(chain.tracks())) {
    zeroes.push({ track, content: undefined });
    if (zeroes.length < ZEROES_AT_ONCE) continue;
    yield zeroes;
    zeroes = [];
  }
  if (zeroes.length > 0) yield zeroes;
  const plan = chain.readPlan(wanted.intersection(chain.tracks()));
  for (let next = plan.next(); next.done !== true; next = plan.next()) {
    const batch = await chain.readFrame();
    if (batch.length > 0) yield batch;
  }
}

/** Messages in the order in which they came. */
class Inbox {
  readonly #messages: FeedParentMessage[] = [];
  #wake: (() => void) | undefined;

  put(message: FeedParentMessage): void {
    this.#messages.push(message);
    this.#wake?.();
  }

  /** Waits for the next message, which is one of this kind. */
  async take<Kind extends FeedParentMessage['kind']>(
    kind: Kind,
  ): Promise<Extract<FeedParentMessage, { readonly kind: Kind }>> {
    for (;;) {
      const message = this.#messages.shift();
      if (message !== undefined) {
        if (isOf(message, kind)) return message;
        throw new Error(`The parent said ${message.kind}, wanted ${kind}`);
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}

function isOf<Kind extends FeedParentMessage['kind']>(
  message: FeedParentMessage,
  kind: Kind,
): message is Extract<FeedParentMessage, { readonly kind: Kind }> {
  return message.kind === kind;
}
