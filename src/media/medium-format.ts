/**
 * What the entries of a medium say. FORMAT.md is the contract; this is its one place in code. Pure.
 *
 *     medium header, node header, announcements of the sets | pieces, a mark between | directory, server
 *     trailer, catalog, node trailer
 */

import { assert, CorruptionError } from '../base/index.ts';
import {
  decodeCounters,
  decodeHeader,
  type SetCounters,
  type SetHeader,
  trackCountOf,
} from '../blockset/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { MediaError } from './errors.ts';
import { countField, decodeText, encodeText, type JsonRecord, listField, textField } from './text-entry.ts';

export const MEDIA_FORMAT = 1;

/** Letters, digits, `.`, `_` and `-`, up to 32: it is part of file names. */
const LABEL = /^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$/;

export function isLabel(text: string): boolean {
  return LABEL.test(text);
}

/** What a person calls the medium, and what a loader is asked for: `backup-2`. */
export function mediumName(medium: { readonly label: string; readonly medium: number }): string {
  return `${medium.label}-${medium.medium}`;
}

export interface MediumHeader {
  /** Random; what belongs together. */
  readonly writing: string;
  readonly label: string;
  /** From 1. */
  readonly medium: number;
  /** Milliseconds since the Unix epoch. */
  readonly createdMs: number;
}

export function encodeMediumHeader(header: MediumHeader): Buffer {
  const continues = header.medium === 1 ? null : header.medium - 1;
  return encodeText({ cowbellMedium: MEDIA_FORMAT, ...header, continues });
}

/** @throws {MediaError} `not-a-medium` or `newer-format`. @throws {CorruptionError} where it is damaged. */
export function decodeMediumHeader(bytes: Buffer, place: string): MediumHeader {
  const record = decodeText(bytes, `The header of medium ${place}`);
  const format = record['cowbellMedium'];
  if (typeof format !== 'number') throw new MediaError('not-a-medium', `${place} is no medium`, { place });
  if (format > MEDIA_FORMAT) {
    const message = `Medium ${place} has format ${format}, this version reads up to ${MEDIA_FORMAT}`;
    throw new MediaError('newer-format', message, { place, format });
  }
  return {
    writing: textField(record, 'writing', place),
    label: textField(record, 'label', place),
    medium: countField(record, 'medium', place),
    createdMs: countField(record, 'createdMs', place),
  };
}

/** The node that wrote: its store, and what is to come. */
export interface NodeHeader {
  /** Id of the store that the sets come from; undefined where they come from none. */
  readonly store: string | undefined;
  readonly sets: readonly string[];
  /** The store's `keys.json`, which opens nothing without a key; undefined where the store is not encrypted. */
  readonly keys: string | undefined;
}

export function encodeNodeHeader(header: NodeHeader): Buffer {
  return encodeText(header);
}

export function decodeNodeHeader(bytes: Buffer, where: string): NodeHeader {
  const record = decodeText(bytes, where);
  const sets = listField(record, 'sets', where).map(String);
  const keys = record['keys'] === undefined ? undefined : textField(record, 'keys', where);
  const store = record['store'] === undefined ? undefined : textField(record, 'store', where);
  return { store, sets, keys };
}

/** What every medium of a writing says of each set before any data: enough to plan a restore, and to say what is missing. */
export interface SetAnnouncement {
  readonly id: string;
  /** 64 hexadecimal digits. */
  readonly seal: string;
  readonly frames: number;
  readonly metadataRecords: number;
  /** Undefined where the set is encrypted: what it is must not be read off a medium. */
  readonly content: SetContent | undefined;
}

/** What media say of a set that is being made while they are written: it is announced in full on the last one. */
export interface SetBeginning {
  readonly id: string;
  readonly header: SetHeader;
}

export type AnnouncedSet = SetAnnouncement | SetBeginning;

/** Whether it was known what the set is in the end. */
export function isWhole(set: AnnouncedSet): set is SetAnnouncement {
  return 'seal' in set;
}

export interface SetContent {
  readonly header: SetHeader;
  readonly counters: SetCounters;
  readonly present: TrackSet;
  readonly zeroes: TrackSet;
}

export function encodeAnnouncement(set: AnnouncedSet): { readonly text: Buffer; readonly tracks: Buffer } {
  if (!isWhole(set)) {
    return { text: encodeText({ id: set.id, header: set.header }), tracks: Buffer.alloc(0) };
  }
  const { id, seal, frames, metadataRecords, content } = set;
  const known = content === undefined ? {} : { header: content.header, counters: content.counters };
  const text = encodeText({ id, seal, frames, metadataRecords, ...known });
  if (content === undefined) return { text, tracks: Buffer.alloc(0) };
  const first = content.present.serialize();
  const length = Buffer.alloc(4);
  length.writeUInt32BE(first.length);
  return { text, tracks: Buffer.concat([length, first, content.zeroes.serialize()]) };
}

/** @throws {CorruptionError} where a part is damaged or does not belong to the other. */
export function decodeAnnouncement(text: Buffer, tracks: Buffer, where: string): AnnouncedSet {
  const record = decodeText(text, where);
  const id = textField(record, 'id', where);
  if (record['seal'] === undefined) {
    const begun = decodeHeader(jsonOf(record['header']), where);
    if (begun.id === id && begun.level === 'full') return { id, header: begun };
    throw new CorruptionError(`${where} is damaged: it announces set ${begun.id}`, { where });
  }
  const base = {
    id,
    seal: textField(record, 'seal', where),
    frames: countField(record, 'frames', where),
    metadataRecords: countField(record, 'metadataRecords', where),
  };
  if (record['header'] === undefined) return { ...base, content: undefined };
  const header = decodeHeader(jsonOf(record['header']), where);
  const counters = decodeCounters(jsonOf(record['counters']), where);
  const end = 4 + (tracks.length < 4 ? 0 : tracks.readUInt32BE(0));
  if (header.id !== base.id || tracks.length < 4 || end > tracks.length) {
    throw new CorruptionError(`${where} is damaged: its tracks are not whole`, { where });
  }
  const count = trackCountOf(header);
  const present = TrackSet.deserialize(tracks.subarray(4, end), where, count);
  const zeroes = TrackSet.deserialize(tracks.subarray(end), where, count);
  return { ...base, content: { header, counters, present, zeroes } };
}

function jsonOf(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value ?? null));
}

/** One row of a medium's directory. */
export interface DirectoryEntry {
  readonly name: string;
  readonly offsetBytes: number;
  readonly sizeBytes: number;
}

/** What one medium holds of one set. */
export interface SetOnMedium {
  readonly set: string;
  readonly pieces: number;
  /** Records in those pieces. */
  readonly frames: number;
  readonly metadataRecords: number;
}

export interface CatalogMedium {
  readonly medium: number;
  readonly sets: readonly SetOnMedium[];
}

/** Which media hold what, as far as it was known at the end of a medium. */
export interface MediaCatalog {
  readonly writing: string;
  readonly label: string;
  readonly createdMs: number;
  /** Whether no further medium follows. */
  readonly isLast: boolean;
  readonly media: readonly CatalogMedium[];
}

export function encodeCatalog(catalog: MediaCatalog): Buffer {
  return encodeText(catalog);
}

/** @throws {CorruptionError} where it is damaged. */
export function decodeCatalog(bytes: Buffer, where: string): MediaCatalog {
  return catalogOf(decodeText(bytes, where), where);
}

export function catalogOf(record: JsonRecord, where: string): MediaCatalog {
  return {
    writing: textField(record, 'writing', where),
    label: textField(record, 'label', where),
    createdMs: countField(record, 'createdMs', where),
    isLast: record['isLast'] === true,
    media: listField(record, 'media', where).map((value) => {
      const medium = recordOf(value, where);
      const sets = listField(medium, 'sets', where).map((entry) => {
        const set = recordOf(entry, where);
        return {
          set: textField(set, 'set', where),
          pieces: countField(set, 'pieces', where),
          frames: countField(set, 'frames', where),
          metadataRecords: countField(set, 'metadataRecords', where),
        };
      });
      return { medium: countField(medium, 'medium', where), sets };
    }),
  };
}

function recordOf(value: unknown, where: string): JsonRecord {
  if (typeof value === 'object' && value !== null) return { ...value };
  throw new CorruptionError(`${where} is damaged: a row is no record`, { where });
}

// ---- names --------------------------------------------------------------------------------------------

/** What kinds of entries there are, and the ends of their names. */
export const ENTRY_KINDS = {
  medium: 'medium.json',
  node: 'node.json',
  set: 'set.json',
  tracks: 'set-tracks',
  frames: 'piece',
  metadata: 'metadata',
  mark: 'mark',
  directory: 'directory.json',
  server: 'server.json',
  catalog: 'catalog.json',
  trailer: 'trailer.json',
} as const;
export type EntryKind = keyof typeof ENTRY_KINDS;
const KINDS: readonly EntryKind[] = [
  'medium',
  'node',
  'set',
  'tracks',
  'frames',
  'metadata',
  'mark',
  'directory',
  'server',
  'catalog',
  'trailer',
];

export interface EntryName {
  /** Place on its medium, from 0. */
  readonly entry: number;
  readonly kind: EntryKind;
  /** The set that it is about. */
  readonly set: string | undefined;
}

/** `backup-2/000007-01JC...-piece`: medium, place on it, set, kind. */
export function entryName(medium: string, name: EntryName): string {
  const set = name.set === undefined ? '' : `${name.set}-`;
  const text = `${medium}/${String(name.entry).padStart(6, '0')}-${set}${ENTRY_KINDS[name.kind]}`;
  assert(text.length <= 100, `The name ${text} is too long`);
  return text;
}

/** @returns undefined for a name that is none of ours. */
export function parseEntryName(text: string): EntryName | undefined {
  const match = /^[^/]+\/(\d{6,})-(?:([0-9A-HJKMNP-TV-Z]{26})-)?([a-z.-]+)$/.exec(text);
  if (match === null) return undefined;
  const kind = KINDS.find((known) => ENTRY_KINDS[known] === match[3]);
  return kind === undefined ? undefined : { entry: Number(match[1]), kind, set: match[2] };
}
