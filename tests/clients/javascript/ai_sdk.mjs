// Vercel's AI SDK, by its provider for servers that speak OpenAI's API. The call is named by the first argument.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const [, , name, baseURL, id, apiKey] = process.argv;
const provider = (key) =>
  createOpenAICompatible({ name: "headway", baseURL, apiKey: key, includeUsage: true, supportsStructuredOutputs: true });
const model = provider(apiKey)(id);
const weather = z.object({ city: z.string(), degrees: z.number().int() });
const verdict = z.object({ larger: z.enum(["9", "11"]) });
const get_weather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }),
  execute: async ({ city }) => ({ Paris: "sunny, 21 degrees", Rome: "rain, 12 degrees" })[city],
});
const paris = "What is the weather in Paris?";
const both = "What is the weather in Paris and in Rome?";
const asJSON = "Give me the weather in Paris as JSON.";
const told = async (promise) => {
  try {
    await promise;
    return null;
  } catch (error) {
    return { api: APICallError.isInstance(error), name: error.name, status: error.statusCode ?? null, text: error.message };
  }
};

const calls = {
  answer: async () => (await generateText({ model, prompt: "12+34=", temperature: 0 })).text,
  streaming: async () => {
    const stream = streamText({ model, prompt: "12+34=" });
    let text = "";
    for await (const piece of stream.textStream) text += piece;
    return { text, usage: await stream.usage };
  },
  completion: async () => {
    const completion = createOpenAICompatible({ name: "headway", baseURL, apiKey }).completionModel(id);
    return (await generateText({ model: completion, prompt: "12+34=", temperature: 0, maxOutputTokens: 2 })).text;
  },
  sampling: async () => (await generateText({ model, prompt: "copy abc7=", stopSequences: ["c"], seed: 3 })).text,
  object: async () => (await generateObject({ model, schema: weather, prompt: asJSON })).object,
  output: async () => (await generateText({ model, output: Output.object({ schema: weather }), prompt: asJSON })).output,
  no_schema: async () => (await generateObject({ model, output: "no-schema", prompt: asJSON })).object,
  stream_object: async () => {
    const stream = streamObject({ model, schema: verdict, prompt: "9 11", temperature: 0 });
    for await (const _ of stream.partialObjectStream);
    return await stream.object;
  },
  required: async () => {
    const tools = { get_weather };
    const ask = { model, tools, toolChoice: "required", prompt: "12+34=", temperature: 0, maxOutputTokens: 600 };
    return (await generateText(ask)).toolCalls.map((call) => call.input.city);
  },
  named: async () => {
    const toolChoice = { type: "tool", toolName: "get_weather" };
    const ask = { model, tools: { get_weather }, toolChoice, prompt: "12+34=", temperature: 0, maxOutputTokens: 600 };
    return (await generateText(ask)).toolCalls.map((call) => call.input.city);
  },
  round: async () => {
    const done = await generateText({ model, tools: { get_weather }, stopWhen: stepCountIs(3), prompt: paris });
    return { text: done.text, steps: done.steps.length };
  },
  streamed_round: async () => {
    const stream = streamText({ model, tools: { get_weather }, stopWhen: stepCountIs(3), prompt: both });
    const inputs = [];
    for await (const part of stream.fullStream) if (part.type === "tool-call") inputs.push(part.input.city);
    return { text: await stream.text, inputs };
  },
  reasoning: async () => {
    const done = await generateText({ model, prompt: "Which is larger, 9 or 11?" });
    const stream = streamText({ model, prompt: "Which is larger, 9 or 11?" });
    let streamed = "";
    for await (const part of stream.fullStream) if (part.type === "reasoning-delta") streamed += part.text;
    return [done.reasoningText, done.text, streamed];
  },
  overflow: () => told(generateText({ model, prompt: "1+".repeat(4000), maxRetries: 0 })),
  wrong_key: () => told(generateText({ model: provider("wrong")(id), prompt: "12+34=", maxRetries: 0 })),
  timeout: () => told(generateText({ model, prompt: "copy abc7=", abortSignal: AbortSignal.timeout(1), maxRetries: 0 })),
  many: async () => {
    const numbers = Array.from({ length: 8 }, (_, place) => 10 + place);
    const ask = (number) => generateText({ model, prompt: `${number}+5=`, temperature: 0 });
    return (await Promise.all(numbers.map(ask))).map((done) => done.text);
  },
};

console.log(JSON.stringify(await calls[name]()));
